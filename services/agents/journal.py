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
from services.agents.prompt import Known

KNOWN = "known"
ANSWER = "answer"
UNPOSTED = {"is": "unposted"}
"""Every post so far was certainly not taken by the messaging service."""


@dataclass(frozen=True)
class Beginning:
    """What a run began with.

    `model` is the one that the blueprint was fitted to. `tools` maps the ids of the offered tools
    to their effects; it is empty when Toolcore was away. `outside`: one of the tools is described
    by an outside (MCP) server.
    """

    known: Known
    model: str | None = None
    tools: Mapping[str, Effect] = field(default_factory=dict)
    outside: bool = False

    @property
    def tainted(self) -> bool:
        """Whether the first prompt holds untrusted content."""
        return bool(self.known.memories or self.known.context.earlier or self.outside)


def beginning_entry(beginning: Beginning) -> dict[str, Any]:
    """Returns the journal entry of a beginning."""
    known = beginning.known
    return {
        "is": KNOWN,
        "model": beginning.model,
        "tools": dict(beginning.tools),
        "outside": beginning.outside,
        "question": asdict(known.context.question),
        "earlier": [
            message.model_dump(mode="json", exclude_none=True) for message in known.context.earlier
        ],
        "memories": [item.model_dump(mode="json", exclude_none=True) for item in known.memories],
    }


def beginning_of(journal: Sequence[dict[str, Any]]) -> Beginning | None:
    """Returns what an earlier attempt began with, None when it had not come that far."""
    for entry in journal:
        if entry["is"] == KNOWN:
            earlier = tuple(ChannelMessage.model_validate(message) for message in entry["earlier"])
            memories = tuple(Item.model_validate(item) for item in entry["memories"])
            known = Known(Context(Question(**entry["question"]), earlier), memories)
            return Beginning(
                known, entry.get("model"), entry.get("tools") or {}, bool(entry.get("outside"))
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
