"""Reads JSON as upstreams write it: strictly first, then with known faults repaired. Pure."""

from __future__ import annotations

import json
import re

import orjson

MAX_REPAIRED_BYTES = 256 << 10
"""Repairing takes ten times as long as reading: tens of milliseconds of the event loop for this
much.
"""
MAX_REPAIRED_PER_ANSWER = 1 << 20
REPAIR_COST = 256
"""Bytes that each repair counts against its answer's bound, whatever its length."""
_BOM = b"\xef\xbb\xbf"
_ESCAPES = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.",
    re.DOTALL,
)


class JsonTexts:
    """The JSON texts of one answer; repairs of all of them together are bounded."""

    def __init__(self) -> None:
        self._repairable = MAX_REPAIRED_PER_ANSWER

    def decoded(self, payload: bytes) -> object:
        """Returns the value of a JSON text.

        Half a surrogate pair and bytes that are no UTF-8 become U+FFFD; NaN, infinities and control
        characters within strings are accepted.

        Raises:
            ValueError: the text is no JSON even when repaired, or needs repair and is over the
                bounds.
        """
        try:
            return orjson.loads(payload)
        except orjson.JSONDecodeError:
            cost = len(payload) + REPAIR_COST
            if len(payload) > MAX_REPAIRED_BYTES or cost > self._repairable:
                raise
            self._repairable -= cost
            return _repaired(payload)


def decoded(payload: bytes) -> object:
    """Returns the value of a whole answer. Raises as `JsonTexts.decoded`."""
    return JsonTexts().decoded(payload)


def _repaired(payload: bytes) -> object:
    text = _ESCAPES.sub(
        lambda found: "\\ufffd" if found["half"] else found[0],
        payload.removeprefix(_BOM).decode("utf-8", "replace"),
    )
    try:
        return json.loads(text, strict=False)
    except RecursionError:
        raise ValueError("too deep") from None


def encoded(value: object) -> str:
    """Returns a value from `decoded` as a JSON text."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # an integer of over 64 bits
        return json.dumps(value, ensure_ascii=False)
