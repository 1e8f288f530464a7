"""The response cache: exact matches, per microDAO, in the memory of one replica."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import NamedTuple

import orjson
from cachetools import TLRUCache
from pydantic_core import to_json

from contracts.errors import InvalidRequest
from contracts.llm.answers import ProxyResponse
from contracts.llm.requests import ProxyRequest
from contracts.llm.routing import Target

ENTRY_BYTES = 512
"""Rough size of an entry without its answer."""

_NOT_IN_THE_KEY = frozenset({"metadata", "cache", "timeout_s"})
_KEY_FIELDS = tuple(name for name in ProxyRequest.model_fields if name not in _NOT_IN_THE_KEY)
_WHOLE = frozenset({"stop", "tool_calls", "length"})


def canonical_body(request: ProxyRequest) -> bytes:
    """Returns the request as canonical JSON, without caller, timeout and cache options.

    Raises:
        InvalidRequest: a number in it is over 64 bits.
    """
    body = {name: value for name in _KEY_FIELDS if (value := getattr(request, name)) is not None}
    if request.extra_body:
        body["extra_body"] = request.extra_body
    try:
        return orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # the only parsed JSON that orjson cannot write
        raise InvalidRequest("a whole number in the request is over 64 bits") from None


def cache_key(request: ProxyRequest) -> bytes:
    """Returns the key that only equal requests of one microDAO share.

    Raises:
        InvalidRequest: the temperature is not 0, so equal requests have different answers.
    """
    if request.temperature != 0:
        raise InvalidRequest("cache: only for requests with `temperature: 0`")
    tenant = hashlib.sha256(request.metadata.microdao_id.encode()).digest()
    return hashlib.sha256(tenant + canonical_body(request)).digest()


def is_clipped(answer: ProxyResponse, request: ProxyRequest) -> bool:
    """Whether an answer was cut at a length that its request does not name.

    Such a length comes from the caller's limits of tokens or money, or from the provider; a length
    that the request names is part of the key.
    """
    return answer.finish_reason == "length" and request.max_tokens is None


def is_worth_keeping(answer: ProxyResponse, request: ProxyRequest, preferred: Target) -> bool:
    """Whether an answer may be reused: it is whole, and from the model's first target.

    An answer of a fallback would outlive the outage of the first target.
    """
    by_preferred = (answer.provider, answer.model_resolved) == (preferred.provider, preferred.name)
    return (
        by_preferred
        and answer.refusal is None
        and answer.finish_reason in _WHOLE
        and not is_clipped(answer, request)
    )


class _Entry(NamedTuple):
    body: bytes
    stored: float
    ttl_s: float


class AnswerCache:
    """A least-recently-used cache of `max_bytes`; an answer takes at most an eighth of that."""

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_entry = max_bytes // 8
        self._clock = clock
        self._entries = TLRUCache[bytes, _Entry, float](
            max_bytes, lambda _key, entry, now: now + entry.ttl_s, clock, _size
        )

    def get(self, key: bytes, max_age_s: float) -> ProxyResponse | None:
        """Returns the answer if it is younger than `max_age_s` and than its `ttl_s`."""
        entry = self._entries.get(key)
        if entry is None or self._clock() - entry.stored >= max_age_s:
            return None
        return ProxyResponse.model_validate_json(entry.body)

    def put(self, key: bytes, answer: ProxyResponse, ttl_s: float) -> None:
        """Stores the answer for `ttl_s` seconds, replacing an older one."""
        self._entries.pop(key, None)
        kept = answer.model_copy(update={"request_id": None, "latency_ms": None, "attempts": None})
        entry = _Entry(to_json(kept, exclude_none=True), self._clock(), ttl_s)
        if _size(entry) <= self._max_entry:
            self._entries[key] = entry

    def close(self) -> None:
        """Drops everything; answers of running calls are not stored any more."""
        self._max_entry = 0
        self._entries.clear()


def _size(entry: _Entry) -> int:
    return len(entry.body) + ENTRY_BYTES
