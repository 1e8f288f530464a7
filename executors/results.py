"""Reads a tool's answer as JSON, bounded in depth."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from executors.redaction import Redactor

MAX_DEPTH = 64
PARSE_IN_THREAD_BYTES = 256 << 10


class InvalidResult(Exception):
    """The answer is not a usable JSON value; the text says why."""


async def read_result(raw: bytes | bytearray, redactor: Redactor) -> Any:
    """Returns the JSON value of `raw` without secrets; long ones are read in a thread.

    Raises InvalidResult.
    """
    if len(raw) > PARSE_IN_THREAD_BYTES:
        return await asyncio.to_thread(lambda: redactor.json(parse_result(raw)))
    return redactor.json(parse_result(raw))


def parse_result(raw: bytes | bytearray) -> Any:
    """Returns the JSON value of `raw`.

    Raises:
        InvalidResult: empty, not UTF-8, not JSON (NaN and Infinity), or deeper than MAX_DEPTH.
    """
    if not raw.strip():
        raise InvalidResult("the tool's answer is empty: it must be a JSON value")
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise InvalidResult("the tool's answer is not valid JSON in UTF-8") from None
    # The depth is at most the number of brackets, so most answers need no walk.
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _deeper_than(value, MAX_DEPTH):
        raise InvalidResult(f"the tool's answer is nested deeper than {MAX_DEPTH} levels")
    return value


def _deeper_than(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        level = [
            item
            for container in level
            if isinstance(container, dict | list)
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return True
