"""Names of behaviours, in scripts or in the name of a model: `drip?interval_s=0.01,ok`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl


@dataclass(frozen=True)
class Play:
    """One behaviour and its options.

    The option `times` makes the first n uses behave, later ones answer `ok`.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


def play(name: str, **options: Any) -> Play:
    """Returns the behaviour `name` with `options`."""
    return Play(name, options)


OK = Play("ok")


def parse_play(text: str | Mapping[str, Any] | Play) -> Play:
    """Reads `name?option=value&…` (values are JSON where they can be) or `{"name", "options"}`."""
    if isinstance(text, Play):
        return text
    if isinstance(text, Mapping):
        return Play(text["name"], dict(text.get("options") or {}))
    name, _, query = text.partition("?")
    return Play(
        name.strip(),
        {key: _value(value) for key, value in parse_qsl(query, keep_blank_values=True)},
    )


def parse_script(
    plays: str | Play | Mapping[str, Any] | Iterable[str | Play | Mapping[str, Any]],
) -> list[Play]:
    """Reads one behaviour, several, or `a,b,c`."""
    if isinstance(plays, Play | Mapping):
        return [parse_play(plays)]
    parts = plays.split(",") if isinstance(plays, str) else plays
    return [parse_play(part) for part in parts]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
