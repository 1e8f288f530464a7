"""What a run in work has learned, as JSON values: enough for another replica to go on from it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from contracts.llm import ProxyResponse
from contracts.memory import Item
from contracts.messaging import ChannelMessage
from services.agent_runtime.context import Context, Question
from services.agent_runtime.prompt import Known

KNOWN = "known"
ANSWER = "answer"


def known_entry(known: Known) -> dict[str, Any]:
    """Returns what a run began with."""
    return {
        "is": KNOWN,
        "question": asdict(known.context.question),
        "earlier": [message.model_dump(mode="json", exclude_none=True) for message in known.context.earlier],
        "memories": [item.model_dump(mode="json", exclude_none=True) for item in known.memories],
    }


def known_of(journal: Sequence[dict[str, Any]]) -> Known | None:
    """Returns what an earlier attempt began with, if it came so far."""
    for entry in journal:
        if entry["is"] == KNOWN:
            earlier = tuple(ChannelMessage.model_validate(message) for message in entry["earlier"])
            memories = tuple(Item.model_validate(item) for item in entry["memories"])
            return Known(Context(Question(**entry["question"]), earlier), memories)
    return None


def answer_entry(answer: ProxyResponse) -> dict[str, Any]:
    """Returns an answer of the model that was not the reply: it asked for tools, or could not be used."""
    fields = {"content", "usage", "provider", "model_resolved", "tool_calls", "finish_reason"}
    return {"is": ANSWER, "answer": answer.model_dump(mode="json", include=fields, exclude_none=True)}


def answers_of(journal: Sequence[dict[str, Any]]) -> list[ProxyResponse]:
    """Returns the answers of earlier attempts, in order."""
    return [ProxyResponse.model_validate(entry["answer"]) for entry in journal if entry["is"] == ANSWER]
