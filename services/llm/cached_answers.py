"""The response cache around the LLM proxy, for requests that ask for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from contracts.errors import DeadlineExceeded, LimitsUnavailable, Overloaded, RateLimited
from contracts.llm.answers import AnswerParts, ProxyResponse, StreamDelta, StreamEnd, StreamItem
from contracts.llm.limits import Estimate, Spent
from contracts.llm.listings import ModelList
from contracts.llm.requests import ProxyRequest
from contracts.llm.usage import OUTCOME_OK, UsageRecord
from services.llm.accounting import caller_of
from services.llm.cache import AnswerCache, cache_key, is_clipped, is_worth_keeping
from services.llm.gateway import Answerer, ChatStream, KeptTarget, Load
from services.llm.proxy import LLMProxy

T = TypeVar("T")

GRACE_S = 0.5
"""Slack, so that the shared run times out first and reports the reason."""
MAX_RECORDED_BYTES = 8 << 20
"""The items of a longer stream are not joined, so its answer is not kept."""


MAX_TURNS = 3
"""How many runs a caller waits for that fail because of their leaders' limits or deadlines."""

_OF_THE_LEADER = (RateLimited, LimitsUnavailable, DeadlineExceeded, Overloaded)
"""Failures caused by the leader's limits or deadline, not by the call itself."""


@dataclass(slots=True)
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    waiting: int = 0


class SingleFlight(Generic[T]):
    """Runs one call per key at a time.

    The first caller leads: the call runs with its limits and deadline, in a task that no caller
    owns. When the leader leaves, the others keep waiting for the same run; when all have left, it
    is cancelled. When the run fails because of the leader's limits or deadline, the next caller
    leads.
    """

    def __init__(self) -> None:
        self._flights: dict[bytes, _Flight[T]] = {}

    async def run(self, key: bytes, call: Callable[[], Coroutine[Any, Any, T]]) -> tuple[T, bool]:
        """Returns the result of the one run for `key`, and whether this caller led it.

        Raises what the run raises.
        """
        turn = 0
        while True:
            turn += 1
            flight, leads = self._flights.get(key), False
            if flight is None or flight.task.done():
                flight, leads = _Flight(asyncio.create_task(call())), True
                self._flights[key] = flight
            flight.waiting += 1
            try:
                return await asyncio.shield(flight.task), leads
            except _OF_THE_LEADER:
                if leads or turn == MAX_TURNS:
                    raise
            finally:
                flight.waiting -= 1
                if not flight.waiting:
                    await self._end(key, flight)

    async def _end(self, key: bytes, flight: _Flight[T]) -> None:
        """Forgets a run that nobody waits for; one that is not done is cancelled."""
        if self._flights.get(key) is flight:
            del self._flights[key]
        if not flight.task.done():  # a caller whose run has failed leads the next one at once
            flight.task.cancel()
            await asyncio.gather(flight.task, return_exceptions=True)
        elif not flight.task.cancelled():
            flight.task.exception()  # read here, because every caller may have left just now


class CachedAnswers:
    """Keeps whole answers, and shares running calls for them. Implements ChatGateway.

    An answer from the cache counts as a request of its caller and takes no tokens. `load` counts
    the calls; a stream counts until it is closed.
    """

    def __init__(self, proxy: LLMProxy, cache: AnswerCache, load: Load) -> None:
        self._proxy = proxy
        self._cache = cache
        self._load = load
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
            return await self.uncounted(request, request_id, credential)
        finally:
            self._load.calls -= 1

    async def uncounted(
        self, request: ProxyRequest, request_id: str, credential: str
    ) -> ProxyResponse:
        """As `complete`, for calls that no caller waits for."""
        if request.cache is None:
            return await self._proxy.complete(request, request_id, credential=credential)
        started, key = time.monotonic(), cache_key(request)
        answer = self._cache.get(key, request.cache.ttl_s)
        if answer is None:
            ask = partial(self._proxy.complete, request, request_id, credential=credential)
            answer, led = await self._shared(key, request, ask)
            if led:
                return answer
            if is_clipped(answer, request):
                return await ask()
        return await self._reused(answer, request, request_id, credential, started)

    async def open_stream(
        self, request: ProxyRequest, request_id: str, *, credential: str
    ) -> ChatStream:
        """Returns a stream; with `cache`, a cached answer as one piece. Raises as `complete`."""
        self._load.calls += 1
        try:
            return _CountedStream(*await self._opened(request, request_id, credential), self._load)
        except BaseException:
            self._load.calls -= 1
            raise

    async def _opened(
        self, request: ProxyRequest, request_id: str, credential: str
    ) -> tuple[ChatStream, AsyncIterator[StreamItem]]:
        """Returns a stream and its items."""
        if request.cache is None:
            opened = await self._proxy.open_stream(request, request_id, credential=credential)
            return opened, opened.items()
        started, key = time.monotonic(), cache_key(request)
        answer = self._cache.get(key, request.cache.ttl_s)
        if answer is not None:
            await self._reused(answer, request, request_id, credential, started, streamed=True)
            replayed = _ReplayedStream(answer)
            return replayed, replayed.items()
        opened = await self._proxy.open_stream(request, request_id, credential=credential)
        return opened, _recorded(opened, partial(self._keep, key, request))

    def models(self) -> ModelList:
        """Returns every logical model with its availability."""
        return self._proxy.models()

    def retire(self) -> None:
        """Stops caching when another instance takes over; running calls end here."""
        self._cache.close()

    async def _shared(
        self,
        key: bytes,
        request: ProxyRequest,
        ask: Callable[[], Coroutine[Any, Any, ProxyResponse]],
    ) -> tuple[ProxyResponse, bool]:
        """Returns the answer of the one call for `key`, and whether it is this caller's own."""

        async def run() -> ProxyResponse:
            answer = await ask()
            self._keep(key, request, answer)
            return answer

        try:
            async with asyncio.timeout(request.timeout_s and request.timeout_s + GRACE_S):
                return await self._flights.run(key, run)
        except TimeoutError:
            raise DeadlineExceeded(
                f"no answer within {request.timeout_s:g} s: raise `timeout_s`, or ask for less"
            ) from None

    def _keep(self, key: bytes, request: ProxyRequest, answer: ProxyResponse) -> None:
        preferred = self._proxy.router.route(request.model).primary
        if request.cache is not None and is_worth_keeping(answer, request, preferred):
            self._cache.put(key, answer, request.cache.ttl_s)

    async def _reused(
        self,
        answer: ProxyResponse,
        request: ProxyRequest,
        request_id: str,
        credential: str,
        started: float,
        *,
        streamed: bool = False,
    ) -> ProxyResponse:
        """Counts the request against its caller's limits, and returns the answer as its own.

        Raises RateLimited or LimitsUnavailable.
        """
        caller = caller_of(request.metadata, credential)
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
        own = {"cached": True, "request_id": request_id, "latency_ms": latency}
        return answer.model_copy(update=own | {"attempts": None, "cost_usd": None})


class _CountedStream:
    """A stream that counts until it is closed."""

    def __init__(self, inner: ChatStream, items: AsyncIterator[StreamItem], load: Load) -> None:
        self._inner = inner
        self._items = items
        self._load: Load | None = load

    @property
    def target(self) -> Answerer:
        return self._inner.target

    def items(self) -> AsyncIterator[StreamItem]:
        return self._items

    async def close(self) -> None:
        load, self._load = self._load, None
        if load is not None:
            load.calls -= 1
        await self._inner.close()


class _ReplayedStream:
    """A cached answer as a stream: one delta, then the end."""

    def __init__(self, answer: ProxyResponse) -> None:
        self._answer = answer
        self.target: Answerer = KeptTarget(answer.provider, answer.model_resolved)

    async def items(self) -> AsyncIterator[StreamItem]:
        """Yields one delta, unless the answer is empty, and the end."""
        answer = self._answer
        fragments = [{"index": index, **call} for index, call in enumerate(answer.tool_calls or [])]
        if answer.content or answer.reasoning_content or fragments:  # a refusal is never cached
            yield StreamDelta(
                content=answer.content or None,
                reasoning=answer.reasoning_content,
                tool_calls=fragments or None,
            )
        yield StreamEnd(
            finish_reason=answer.finish_reason or "stop", usage=answer.usage, cached=True
        )

    async def close(self) -> None:
        """Does nothing: there is no upstream."""


async def _recorded(
    opened: ChatStream, keep: Callable[[ProxyResponse], None]
) -> AsyncIterator[StreamItem]:
    """Yields the items of `opened`; at its regular end the whole answer is passed to `keep`."""
    parts, size = AnswerParts(), 0
    async for item in opened.items():
        size += len(item.model_dump_json(exclude_none=True))
        if size <= MAX_RECORDED_BYTES:
            if isinstance(item, StreamDelta):
                parts.add(item)
            elif (answer := _whole(parts, item, opened.target)) is not None:
                keep(answer)
        yield item


def _whole(parts: AnswerParts, end: StreamEnd, target: Answerer) -> ProxyResponse | None:
    """Returns the answer of a stream; None if its tool calls are unreadable."""
    fields = parts.fields(end)
    try:
        return ProxyResponse(
            **fields,
            reasoning_content=fields["reasoning"],
            provider=target.provider,
            model_resolved=target.name,
        )
    except ValidationError:
        return None
