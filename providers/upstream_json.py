"""JSON as upstreams write it: strictly read, and where that fails once more with the faults that are known mended. Pure."""

from __future__ import annotations

import json
import re

import orjson

MAX_MENDED_BYTES = 256 << 10
"""Mending costs ten times the reading, some tens of milliseconds of an event loop for this much; longer texts are refused unmended."""
MAX_MENDED_PER_ANSWER = 1 << 20
MENDING_COST = 256
"""What the mending of a text of no length counts against the bound of its answer, in bytes."""
_BOM = b"\xef\xbb\xbf"
_ESCAPES = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.",
    re.DOTALL,
)


class JsonTexts:
    """The JSON texts of one answer; what is mended of all of them together is bounded."""

    def __init__(self) -> None:
        self._mendable = MAX_MENDED_PER_ANSWER

    def decoded(self, payload: bytes) -> object:
        """Returns the value of a JSON text.

        Half a surrogate pair and bytes that are no UTF-8 become U+FFFD; NaN, infinities and control characters within strings
        are accepted.

        Raises:
            ValueError: the text is no JSON, also when mended, or is malformed and over the bounds of what is mended.
        """
        try:
            value: object = orjson.loads(payload)
        except orjson.JSONDecodeError:
            cost = len(payload) + MENDING_COST
            if len(payload) > MAX_MENDED_BYTES or cost > self._mendable:
                raise
            self._mendable -= cost
            value = _mended(payload)
        return value


def decoded(payload: bytes) -> object:
    """Returns the value of a JSON text that is an answer by itself. Raises as `JsonTexts.decoded`."""
    return JsonTexts().decoded(payload)


def _mended(payload: bytes) -> object:
    text = _ESCAPES.sub(
        lambda found: "\\ufffd" if found["half"] else found[0],
        payload.removeprefix(_BOM).decode("utf-8", "replace"),
    )
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
