"""The LLM proxy as interfaces call it: adds the response cache, and counts running calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

from contracts.errors import DeadlineExceeded
from contracts.llm.answers import ProxyResponse, StreamItem
from contracts.llm.limits import Caller, Estimate, Spent, caller_of
from contracts.llm.listings import ModelList
from contracts.llm.requests import CacheRequest, ProxyRequest
from contracts.llm.usage import OUTCOME_OK, UsageRecord
from services.llm.cache import AnswerCache, cache_key, is_clipped, is_worth_keeping
from services.llm.proxy import LLMProxy
from services.llm.replay import Answerer, ChatStream, RecordedStream, ReplayedStream
from services.llm.single_flight import SharedResult, SingleFlight

GRACE_S = 0.5
"""Slack, so that the shared run times out first and reports the reason."""


class ChatGateway(Protocol):
    """Answers, whole or streamed, and the list of models. Gateway and LLMProxy implement it."""

    async def complete(
        self, request: ProxyRequest, request_id: str, *, credential: str
    ) -> ProxyResponse:
        """Returns one whole answer. Raises leaves of the error tree."""

    async def open_stream(
        self, request: ProxyRequest, request_id: str, *, credential: str
    ) -> ChatStream:
        """Returns a stream whose first item has arrived. Raises leaves of the error tree."""

    def models(self) -> ModelList:
        """Returns every logical model with its availability."""


@dataclass(slots=True)
class Load:
    """Counts the running calls of this process that a caller waits for."""

    calls: int = 0


class Gateway:
    """The LLM proxy behind a response cache, for requests that ask for it. Implements ChatGateway.

    An answer from the cache counts as a request of its caller and takes no tokens. `load` counts
    the calls that callers wait for; it is given from outside, so that it outlives a reload.
    """

    def __init__(self, proxy: LLMProxy, cache: AnswerCache, load: Load | None = None) -> None:
        self._proxy = proxy
        self._cache = cache
        self._load = load or Load()
        self._flights: SingleFlight[ProxyResponse] = SingleFlight()

    async def complete(
        self, request: ProxyRequest, request_id: str, *, credential: str
    ) -> ProxyResponse:
        """Returns one whole answer; with `cache`, that of an equal request if there is one.

        Raises:
            InvalidRequest: `cache` without temperature 0.
            DaarionError: as the proxy.
        """
        self._load.calls += 1
        try:
            return await self.complete_uncounted(request, request_id, credential=credential)
        finally:
            self._load.calls -= 1

    async def complete_uncounted(
        self, request: ProxyRequest, request_id: str, *, credential: str
    ) -> ProxyResponse:
        """As `complete`, for batches: such calls are not counted as load."""
        if request.cache is None:
            return await self._proxy.complete(request, request_id, credential=credential)
        started = time.monotonic()
        key = cache_key(request)
        answer = self._cache.get(key, request.cache.ttl_s)
        if answer is None:
            shared = await self._shared(
                key, request, request.cache, request_id, credential=credential
            )
            answer = shared.result
            if shared.led:
                return answer
            if is_clipped(answer, request):
                return await self._proxy.complete(request, request_id, credential=credential)
        return await self._from_cache(
            request,
            caller_of(request.metadata, credential),
            request_id,
            answer,
            started,
            streamed=False,
        )

    async def open_stream(
        self, request: ProxyRequest, request_id: str, *, credential: str
    ) -> ChatStream:
        """Returns a stream; with `cache`, a cached answer as one piece. Raises as `complete`."""
        self._load.calls += 1
        try:
            opened = await self._opened(request, request_id, credential=credential)
        except BaseException:
            self._load.calls -= 1
            raise
        return _CountedStream(opened, self._ended)

    def models(self) -> ModelList:
        """Returns every logical model with its availability."""
        return self._proxy.models()

    def retire(self) -> None:
        """Stops caching when a new gateway takes over; running calls end here."""
        self._cache.close()

    async def _opened(
        self, request: ProxyRequest, request_id: str, *, credential: str
    ) -> ChatStream:
        wanted = request.cache
        if wanted is None:
            return await self._proxy.open_stream(request, request_id, credential=credential)
        started = time.monotonic()
        key = cache_key(request)
        answer = self._cache.get(key, wanted.ttl_s)
        if answer is not None:
            return ReplayedStream(
                await self._from_cache(
                    request,
                    caller_of(request.metadata, credential),
                    request_id,
                    answer,
                    started,
                    streamed=True,
                )
            )
        opened = await self._proxy.open_stream(request, request_id, credential=credential)
        return RecordedStream(opened, lambda whole: self._keep(key, request, whole, wanted.ttl_s))

    async def _shared(
        self,
        key: bytes,
        request: ProxyRequest,
        wanted: CacheRequest,
        request_id: str,
        *,
        credential: str,
    ) -> SharedResult[ProxyResponse]:
        async def run() -> ProxyResponse:
            answer = await self._proxy.complete(request, request_id, credential=credential)
            self._keep(key, request, answer, wanted.ttl_s)
            return answer

        try:
            async with asyncio.timeout(request.timeout_s and request.timeout_s + GRACE_S):
                return await self._flights.run(key, run)
        except TimeoutError:
            raise DeadlineExceeded(
                f"no answer within {request.timeout_s:g} s: raise `timeout_s`, or ask for less"
            ) from None

    def _keep(self, key: bytes, request: ProxyRequest, answer: ProxyResponse, ttl_s: float) -> None:
        if is_worth_keeping(answer, request, self._proxy.router.route(request.model).primary):
            self._cache.put(key, answer, ttl_s)

    async def _from_cache(
        self,
        request: ProxyRequest,
        caller: Caller,
        request_id: str,
        answer: ProxyResponse,
        started: float,
        *,
        streamed: bool,
    ) -> ProxyResponse:
        """Counts the request against this caller's limits, and returns the cached answer.

        Raises RateLimited or LimitsUnavailable.
        """
        (await self._proxy.limiter.reserve(caller, Estimate())).settle(Spent(requests=1))
        latency = round((time.monotonic() - started) * 1000, 3)
        record = UsageRecord(
            request_id=request_id,
            agent_id=caller.agent_id,
            microdao_id=caller.microdao_id,
            channel_id=request.metadata.channel_id,
            logical_model=request.model,
            provider=answer.provider,
            physical_model=answer.model_resolved,
            outcome=OUTCOME_OK,
            streamed=streamed,
            latency_ms=latency,
            attempts=0,
        )
        self._proxy.events.emit("llm.call", **record.event(), cached=True)
        return answer.model_copy(
            update={
                "cached": True,
                "request_id": request_id,
                "latency_ms": latency,
                "attempts": None,
            }
        )

    def _ended(self) -> None:
        self._load.calls -= 1


class _CountedStream:
    """A stream that calls `closed` when it is closed, once."""

    def __init__(self, inner: ChatStream, closed: Callable[[], None]) -> None:
        self._inner = inner
        self._closed: Callable[[], None] | None = closed

    @property
    def target(self) -> Answerer:
        return self._inner.target

    def items(self) -> AsyncIterator[StreamItem]:
        return self._inner.items()

    async def close(self) -> None:
        closed, self._closed = self._closed, None
        if closed is not None:
            closed()
        await self._inner.close()
