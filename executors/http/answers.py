"""From a tool server's HTTP answer to an Outcome: its bounded body, and what its status means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import orjson

from common.http.inflate import inflated
from contracts.tools.api import ErrorKind

RETRYABLE_STATUSES = frozenset({429, 502, 503, 504})
MAX_REASON_CHARS = 300

# Statuses by which a server judges the call itself become the kind of failure.
_KINDS: Mapping[int, ErrorKind] = {
    400: "invalid_args",
    403: "denied",
    404: "not_found",
    408: "timeout",
    409: "conflict",
    410: "not_found",
    422: "invalid_args",
    429: "unavailable",
    503: "unavailable",
    504: "timeout",
}
_EXPLAINED = frozenset({400, 403, 404, 409, 410, 422})


def error_kind(status: int) -> ErrorKind:
    """Returns the kind of failure that a status other than 2xx means."""
    return _KINDS.get(status, "upstream")


def effect_excluded(status: int) -> bool:
    """Whether this status says that the server did nothing."""
    return 400 <= status < 500 and status != 408


def describe(status: int, body: bytes | bytearray, redact: Callable[[str], str]) -> str:
    """Returns the error text: the status, and the server's reason if it judged the call."""
    if 300 <= status < 400:
        return (
            f"the tool's server answered with a redirect (HTTP {status}), which is never followed"
        )
    reason = _reason(body, redact) if status in _EXPLAINED else None
    return f"the tool's server answered HTTP {status}" + (f": {reason}" if reason else "")


def _reason(body: bytes | bytearray, redact: Callable[[str], str]) -> str | None:
    """Returns the first text in the usual places of an error body.

    Secrets are redacted before the text is cut, since part of a secret would not be found.
    """
    try:
        value: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    for _ in range(2):
        if not isinstance(value, dict):
            break
        value = next(
            (value[key] for key in ("error", "message", "detail", "reason") if value.get(key)), None
        )
    if not isinstance(value, str):
        return None
    printable = "".join(
        character if character.isprintable() else " "
        for character in redact(value)[: 4 * MAX_REASON_CHARS]
    )
    return " ".join(printable.split())[:MAX_REASON_CHARS] or None


class BodyTooLarge(Exception):
    """The decoded body is over the bound."""


async def read_body(response: aiohttp.ClientResponse, limit: int) -> bytearray:
    """Returns the decoded body, at most `limit` bytes. The session must not decode by itself.

    Raises:
        BodyTooLarge: at most one piece beyond the limit was decoded.
        Undecodable: an encoding that was not requested, or a body that is not valid in it.
        aiohttp.ClientError: the connection broke.
    """
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.strip().lower() == "identity" and (response.content_length or 0) > limit:
        raise BodyTooLarge
    body = bytearray()
    async for piece in inflated(response.content.iter_any(), encoding):
        if len(body) + len(piece) > limit:
            raise BodyTooLarge
        body += piece
    return body
