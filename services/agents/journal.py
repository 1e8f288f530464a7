"""The journal of a run: JSON values from which another replica can resume it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from contracts.llm.answers import ProxyResponse
from contracts.tools.api import Effect
from services.agents.context import Context

RUN_START = "known"
ANSWER = "answer"
UNPOSTED = {"is": "unposted"}
"""Every post so far was certainly not taken by the messaging service."""


@dataclass(frozen=True)
class RunStart(Context):
    """What a run began with.

    `model` is the one that the blueprint was fitted to. `tools` maps the ids of the offered tools
    to their effects; it is empty when Toolcore was away. `outside`: one of the tools is described
    by an outside (MCP) server.
    """

    model: str | None = None
    tools: Mapping[str, Effect] = field(default_factory=dict)
    outside: bool = False

    @property
    def tainted(self) -> bool:
        """Whether the first prompt holds untrusted content."""
        return bool(self.memories or self.earlier or self.outside)


_START = TypeAdapter(RunStart)


def start_entry(start: RunStart) -> dict[str, Any]:
    """Returns the journal entry of a run's start."""
    return {"is": RUN_START, **_START.dump_python(start, mode="json", exclude_none=True)}


def start_of(journal: Sequence[dict[str, Any]]) -> RunStart | None:
    """Returns what an earlier attempt began with, None when it had not come that far."""
    for entry in journal:
        if entry["is"] == RUN_START:
            return _START.validate_python(entry)
    return None


def answer_entry(answer: ProxyResponse) -> dict[str, Any]:
    """Returns the journal entry of an answer that was not the reply."""
    fields = {"content", "usage", "provider", "model_resolved", "tool_calls", "finish_reason"}
    return {
        "is": ANSWER,
        "answer": answer.model_dump(mode="json", include=fields, exclude_none=True),
    }


def answers_of(journal: Sequence[dict[str, Any]]) -> list[ProxyResponse]:
    """Returns the answers of earlier attempts, in order."""
    return [
        ProxyResponse.model_validate(entry["answer"]) for entry in journal if entry["is"] == ANSWER
    ]
