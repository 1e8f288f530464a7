"""From a stored record to the text that is searched and the item that is shown. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import JsonValue

from contracts.memory.fields import Tier

MEMORY_META = "memory"
"""The key of `meta` under which a query says where an item comes from; never stored."""
_PLAIN = ("user_message", "agent_reply", "text")


def text_of(content: Mapping[str, JsonValue]) -> str:
    """Returns the text of a memory's content.

    `{user_message, agent_reply}` and `{text}` become their texts, one per line. Any other object
    becomes `key: value` lines, because a key such as `deadline` says what the value means.
    """
    if all(key in _PLAIN and isinstance(value, str | None) for key, value in content.items()):
        texts = [content.get(key) for key in _PLAIN]
        return "\n".join(text.strip() for text in texts if isinstance(text, str) and text.strip())
    return "\n".join(_lines("", dict(content)))


def _lines(name: str, value: JsonValue) -> list[str]:
    if isinstance(value, dict):
        return [
            line
            for key, item in value.items()
            for line in _lines(f"{name}.{key}" if name else key, item)
        ]
    if isinstance(value, list):
        return [line for item in value for line in _lines(name, item)]
    if value is None or value == "":
        return []
    return [f"{name}: {value}".strip()]


def described(
    meta: Mapping[str, Any], *, source: str, created_at: datetime, origin: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns `meta` with `source`, `timestamp` and `memory` added; the caller's keys win."""
    ours = {
        "source": source,
        "timestamp": created_at.astimezone(UTC).isoformat(),
        MEMORY_META: dict(origin),
    }
    return {**ours, **meta}


def origin_of(memory_id: str, tier: Tier, channel_id: str | None, part: int = 0) -> dict[str, Any]:
    """Returns `meta.memory`: id, tier, channel, and `part` for a later chunk of a long text."""
    origin: dict[str, Any] = {"id": memory_id, "tier": tier}
    if channel_id is not None:
        origin["channel_id"] = channel_id
    if part:
        origin["part"] = part
    return origin


def source_of(channel_id: str | None) -> str:
    """Returns `meta.source`: `channel:<id>`, or `memory` without a channel."""
    if channel_id is None:
        return "memory"
    return channel_id if channel_id.startswith("channel:") else f"channel:{channel_id}"
