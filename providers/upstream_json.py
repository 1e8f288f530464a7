"""JSON as upstreams write it: strictly read, and where that fails once more with the faults that are known mended. Pure."""

from __future__ import annotations

import json
import re

import orjson

MAX_MENDED_BYTES = 4 << 20
"""Mending costs ten times the reading; longer texts are not worth it."""
_BOM = b"\xef\xbb\xbf"
_ESCAPES = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.", re.DOTALL
)


def decoded(payload: bytes) -> object:
    """Returns the value of a JSON text.

    Half a surrogate pair and bytes that are no UTF-8 become U+FFFD; NaN, infinities and control characters within strings are taken.

    Raises:
        ValueError: no JSON, nor what it was mended to.
    """
    try:
        value: object = orjson.loads(payload)
    except orjson.JSONDecodeError:
        if len(payload) > MAX_MENDED_BYTES:
            raise
        value = _mended(payload)
    return value


def _mended(payload: bytes) -> object:
    text = _ESCAPES.sub(lambda found: "\\ufffd" if found["half"] else found[0], payload.removeprefix(_BOM).decode("utf-8", "replace"))
    try:
        value: object = json.loads(text, strict=False)
    except RecursionError:
        raise ValueError("too deep") from None
    return value


def encoded(value: object) -> str:
    """Returns `value`, which came out of `decoded`, as a JSON text."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # an integer of over 64 bits
        return json.dumps(value, ensure_ascii=False)
