"""Answers that a small model chooses among a tool's results, see `AnswerChoice`. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from contracts.agents.blueprints import AnswerChoice
from contracts.llm.answers import ProxyResponse
from services.agents.texts import clean
from services.agents.tool_turn import CallOutcome

MAX_CHOICES = 50
MAX_CHARS = 300
KEY = "choices"


@dataclass(frozen=True)
class Choices:
    """The values that a run may answer with."""

    settings: AnswerChoice
    values: tuple[str, ...]

    def schema(self) -> dict[str, Any]:
        """Returns the JSON schema that restricts the model to a choice."""
        items = {"type": "string", "enum": list(self.values)}
        chosen = {"type": "array", "items": items, "minItems": 1, "maxItems": len(self.values)}
        return {
            "type": "object",
            "properties": {KEY: chosen},
            "required": [KEY],
            "additionalProperties": False,
        }

    def reply(self, answer: ProxyResponse) -> str:
        """Returns the text for people; without a readable choice it names all values."""
        try:
            given = orjson.loads(answer.content)
            chosen = [value for value in given[KEY] if value in self.values]
        except (ValueError, TypeError, KeyError):
            chosen = []
        named = list(dict.fromkeys(chosen)) or list(self.values)
        return self.settings.reply.replace("{choices}", ", ".join(named))


def choices_of(settings: AnswerChoice | None, outcomes: Sequence[CallOutcome]) -> Choices | None:
    """Returns the choices, None when the tool has not returned a list of objects."""
    if settings is None:
        return None
    for outcome in outcomes:
        if (
            outcome.use.tool_id == settings.tool
            and outcome.use.ok
            and (found := _values(outcome.text, settings.field)) is not None
        ):
            return Choices(settings, found)
    return None


def _values(text: str, name: str) -> tuple[str, ...] | None:
    rows = orjson.loads(text)
    if isinstance(rows, dict):
        rows = rows.get("result")
    if not isinstance(rows, list):
        return None
    found = [
        clean(row[name])[:MAX_CHARS]
        for row in rows
        if isinstance(row, dict) and isinstance(row.get(name), str) and row[name].strip()
    ]
    return tuple(dict.fromkeys(found))[:MAX_CHOICES]
