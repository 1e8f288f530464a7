"""Blueprints: what an operator writes about one agent in `configs/agents/*.yaml`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from contracts.identity import Identifier
from contracts.llm.limits import Dollars
from contracts.shapes import Strict
from contracts.tools.api import ToolId

ToolMode = Literal["native", "json", "text"]
Language = Literal["uk", "en"]


class RunLimits(Strict):
    """Bounds of one run.

    `seconds` covers everything up to the reply; posting it has a bound of its own. `steps` counts
    calls of the model; the last one offers no tools. `tokens` counts prompts and answers together;
    once they are used up, the next step is the last. So it is with `cost_usd`, the dollars of the
    model's calls, as far as their prices are known; of this bound and the `max_cost_per_run` of
    whoever invoked the agent the smaller counts. `context_tokens` bounds channel and memory in a
    prompt.
    """

    steps: Annotated[int, Field(ge=1, le=32)] = 6
    tool_calls: Annotated[int, Field(ge=0, le=128)] = 12
    calls_per_step: Annotated[int, Field(ge=1, le=32)] = 6
    tokens: Annotated[int, Field(ge=100, le=10_000_000)] = 60_000
    cost_usd: Dollars | None = None
    answer_tokens: Annotated[int, Field(ge=8, le=100_000)] = 800
    context_tokens: Annotated[int, Field(ge=0, le=1_000_000)] = 3_000
    result_chars: Annotated[int, Field(ge=100, le=1_000_000)] = 8_000
    seconds: Annotated[float, Field(gt=0, le=3_600, allow_inf_nan=False)] = 90.0


class BlueprintMemory(Strict):
    """How many items the agent recalls per run, and whether it stores question and answer."""

    recall: Annotated[int, Field(ge=0, le=50)] = 5
    min_score: Annotated[float, Field(ge=0, le=1)] = 0.0
    store: bool = True
    timeout_s: Annotated[float, Field(gt=0, le=60, allow_inf_nan=False)] = 5.0


class AnswerChoice(Strict):
    """For a model too small for free text: the agent answers by choosing among a tool's results.

    Once `tool` has returned objects, a JSON schema restricts the last step to their values of
    `field`. The reply is `reply` with the chosen values in place of `{choices}`, or `none` when
    there are no values.
    """

    tool: ToolId
    field: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    reply: Annotated[str, StringConstraints(min_length=1, max_length=2_000)]
    none: Annotated[str, StringConstraints(min_length=1, max_length=2_000)]

    @model_validator(mode="after")
    def _has_a_place(self) -> AnswerChoice:
        if "{choices}" not in self.reply:
            raise ValueError("reply: needs {choices} in it")
        return self


class SmallModel(Strict):
    """How the agent works while one of `models` (the provider's own names) answers: it begins with
    a call of `answer.tool`, has no other tool, and answers by choosing.
    """

    models: Annotated[list[str], Field(min_length=1, max_length=64)]
    answer: AnswerChoice
    context_tokens: Annotated[int, Field(ge=0, le=1_000_000)] = 400


class Blueprint(Strict):
    """One agent.

    `model` is a logical model of the LLM proxy. The agent may call the tools that both `tools` and
    Toolcore allow. `write_after_untrusted` names the tools that may change something after the run
    has read untrusted content (other messages, memory, tool results): all, none, or a list.
    `first_step: required` makes the model begin with a tool call.
    """

    id: Annotated[Identifier, StringConstraints(pattern=r"^agent:.+$")]
    name: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    description: Annotated[str, StringConstraints(max_length=2_000)] = ""
    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    instructions: Annotated[
        str, StringConstraints(min_length=1, max_length=50_000, strip_whitespace=True)
    ]
    language: Language = "uk"
    tools: list[ToolId] = Field(default=[], max_length=128)
    tool_mode: ToolMode = "native"
    first_step: Literal["auto", "required"] = "auto"
    answer: AnswerChoice | None = None
    small: SmallModel | None = None
    write_after_untrusted: bool | Annotated[list[ToolId], Field(max_length=128)] = False
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    history: Annotated[int, Field(ge=0, le=200)] = 50
    memory: BlueprintMemory = BlueprintMemory()
    limits: RunLimits = RunLimits()

    @model_validator(mode="after")
    def _consistent(self) -> Blueprint:
        granted = self.write_after_untrusted if isinstance(self.write_after_untrusted, list) else []
        unknown = [name for name in granted if name not in self.tools]
        if unknown:
            raise ValueError(f"write_after_untrusted: {', '.join(unknown)} is not among `tools`")
        for choice in (self.answer, self.small.answer if self.small is not None else None):
            if choice is not None and choice.tool not in self.tools:
                raise ValueError(f"answer.tool: {choice.tool} is not among `tools`")
        if self.first_step == "required" and not self.tools:
            raise ValueError("first_step: `required` needs `tools`")
        return self

    def fitted(self, model: str | None) -> Blueprint:
        """Returns the blueprint that applies while `model` answers."""
        small = self.small
        if small is None or model not in small.models:
            return self
        limits = self.limits.model_copy(
            update={
                "steps": 2,
                "context_tokens": min(small.context_tokens, self.limits.context_tokens),
            }
        )
        changes = {
            "first_step": "required",
            "tools": [small.answer.tool],
            "answer": small.answer,
            "write_after_untrusted": False,
        }
        return self.model_copy(
            update={
                **changes,
                "tool_mode": "native",
                "temperature": 0.0,
                "limits": limits,
                "small": None,
            }
        )

    def may_write_after_untrusted(self, tool_id: str) -> bool:
        """Whether this tool may change something once untrusted content was read."""
        granted = self.write_after_untrusted
        return granted if isinstance(granted, bool) else tool_id in granted
