"""What the parts of the pipeline share about one run: ports, and the run with its bounds."""

from __future__ import annotations

from dataclasses import dataclass, replace

from contracts.access.principals import acting
from contracts.agents.blueprints import Blueprint
from contracts.agents.ports import AgentMemory, AgentTools
from contracts.agents.runs import Run
from contracts.deadline import Deadline
from contracts.llm.ports import ChatModel
from contracts.workspace.messaging_service import Messaging
from services.agents.run_recorder import RunRecorder


class EmptyQuestionError(Exception):
    """The triggering message holds no text."""


class NothingToAnswerError(Exception):
    """The channel holds no such message (then `error_type` is set), or an agent wrote it."""

    def __init__(self, error_type: str | None = None) -> None:
        super().__init__(error_type)
        self.error_type = error_type


class NoAnswerError(Exception):
    """The model used up its steps without a text that a person can read."""


@dataclass(frozen=True)
class PipelinePorts:
    """The services that the pipeline calls, all of them over HTTP through the ingress."""

    messaging: Messaging
    memory: AgentMemory
    model: ChatModel
    tools: AgentTools


@dataclass(frozen=True)
class RunScope:
    """One attempt at a run. `run` is read only: what happens is reported to `recorder`."""

    run: Run
    recorder: RunRecorder
    blueprint: Blueprint
    deadline: Deadline

    def is_cost_used_up(self) -> bool:
        """Whether the run has cost what it may: by its blueprint, or by whom it runs for."""
        return any(
            bound is not None and self.run.cost_usd >= bound
            for bound in (self.blueprint.limits.cost_usd, acting().grants.max_cost_per_run)
        )

    def fitted(self, model: str | None) -> RunScope:
        """Returns the scope with the blueprint as it is used while `model` answers."""
        return replace(self, blueprint=self.blueprint.fitted(model))
