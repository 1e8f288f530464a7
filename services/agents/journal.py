"""The journal of a run: JSON values from which another replica can resume it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from contracts.llm.answers import ProxyResponse
from contracts.memory.api import Item
from contracts.tools.api import Effect
from contracts.workspace.messaging_service import ChannelMessage
from services.agents.context import Context, Question

RUN_START = "known"
ANSWER = "answer"
UNPOSTED = {"is": "unposted"}
"""Every post so far was certainly not taken by the messaging service."""


@dataclass(frozen=True)
class RunStart:
    """What a run began with.

    `model` is the one that the blueprint was fitted to. `tools` maps the ids of the offered tools
    to their effects; it is empty when Toolcore was away. `outside`: one of the tools is described
    by an outside (MCP) server.
    """

    context: Context
    model: str | None = None
    tools: Mapping[str, Effect] = field(default_factory=dict)
    outside: bool = False

    @property
    def tainted(self) -> bool:
        """Whether the first prompt holds untrusted content."""
        return bool(self.context.memories or self.context.earlier or self.outside)


def start_entry(start: RunStart) -> dict[str, Any]:
    """Returns the journal entry of a run's start."""
    context = start.context
    return {
        "is": RUN_START,
        "model": start.model,
        "tools": dict(start.tools),
        "outside": start.outside,
        "question": asdict(context.question),
        "earlier": [
            message.model_dump(mode="json", exclude_none=True) for message in context.earlier
        ],
        "memories": [item.model_dump(mode="json", exclude_none=True) for item in context.memories],
    }


def start_of(journal: Sequence[dict[str, Any]]) -> RunStart | None:
    """Returns what an earlier attempt began with, None when it had not come that far."""
    for entry in journal:
        if entry["is"] == RUN_START:
            earlier = tuple(ChannelMessage.model_validate(message) for message in entry["earlier"])
            memories = tuple(Item.model_validate(item) for item in entry["memories"])
            context = Context(Question(**entry["question"]), earlier, memories)
            return RunStart(
                context, entry.get("model"), entry.get("tools") or {}, bool(entry.get("outside"))
            )
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
