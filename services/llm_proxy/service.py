"""The LLM proxy: a logical model in, an answer of whichever target could give it out."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field

from contracts.deadline import Deadline
from contracts.errors import DaarionError, ModelUnavailable
from contracts.limits import Limiter
from contracts.llm import LLMResponse, ModelInfo, ModelList, ProxyRequest, ProxyResponse, StreamDelta, StreamItem
from contracts.ports import ChatProvider, EventLog, Prices, Router
from contracts.routing import Route, Target
from contracts.usage import OUTCOME_OK, UsageSink
from services.llm_proxy.accounting import OUTCOME_CANCELLED, CallAccount, NoPrices, outcome_of
from services.llm_proxy.failover import fails_over


@dataclass(frozen=True)
class LLMProxy:
    """The use cases of the LLM proxy over its ports. Holds no state of its own."""

    router: Router
    providers: Mapping[str, ChatProvider]
    limiter: Limiter
    usage: UsageSink
    events: EventLog
    prices: Prices = field(default_factory=NoPrices)

    async def complete(self, request: ProxyRequest, request_id: str) -> ProxyResponse:
        """Returns one whole answer, from the first target of the route that gives one.

        Raises:
            UnknownModel: no such logical model.
            RateLimited: a limit of ours is exhausted.
            ModelUnavailable: no target is configured.
            DaarionError: the leaf of the last target's failure.
        """
        route = self.router.route(request.model)
        account = self._account(request, route, request_id, streamed=False)
        with self._settling(account):
            await account.reserve(self.limiter)
            target, answer = await self._first_answer(request, route, account)
        return _response(target, answer, account)

    async def open_stream(self, request: ProxyRequest, request_id: str) -> OpenStream:
        """Returns a stream whose first item has already arrived, so that failures before it are answered with a status.

        The caller must iterate the stream or close it. Raises as `complete`.
        """
        route = self.router.route(request.model)
        account = self._account(request, route, request_id, streamed=True)
        try:
            await account.reserve(self.limiter)
            target, first, items = await self._first_stream(request, route, account)
        except BaseException as error:
            account.settle(outcome_of(error))
            raise
        return OpenStream(target, first, items, account)

    def models(self) -> ModelList:
        """Returns every logical model with its availability and, where it has none, the reason."""
        return ModelList(models=[self._info(route) for route in self.router.routes()])

    def _info(self, route: Route) -> ModelInfo:
        provider = self.providers[route.primary.provider]
        condition = provider.condition()
        reason = provider.unavailable_reason() or condition.not_ready
        return ModelInfo(
            id=route.logical_model,
            provider=route.primary.provider,
            name=route.primary.name,
            available=reason is None,
            reason=reason,
            load=condition.load,
            fallbacks=list(route.fallbacks),
        )

    def _account(self, request: ProxyRequest, route: Route, request_id: str, *, streamed: bool) -> CallAccount:
        return CallAccount(request, route, request_id, streamed=streamed, events=self.events, sink=self.usage, prices=self.prices)

    @contextlib.contextmanager
    def _settling(self, account: CallAccount) -> Iterator[None]:
        outcome = OUTCOME_OK
        try:
            yield
        except BaseException as error:
            outcome = outcome_of(error)
            raise
        finally:
            account.settle(outcome)

    async def _first_answer(self, request: ProxyRequest, route: Route, account: CallAccount) -> tuple[Target, LLMResponse]:
        deadline = _deadline(request, route)
        failure: DaarionError | None = None
        for target in self._callable_targets(route, account):
            account.attempt(target)
            try:
                answer = await self.providers[target.provider].chat(request.messages, target, deadline, **request.options())
            except DaarionError as error:
                failure = _noted(error, account, deadline)
            else:
                account.attempt_ended(OUTCOME_OK, answer.usage)
                return target, answer
        raise failure or self._none_configured(route)

    async def _first_stream(
        self, request: ProxyRequest, route: Route, account: CallAccount
    ) -> tuple[Target, StreamItem, AsyncIterator[StreamItem]]:
        deadline = _deadline(request, route)
        failure: DaarionError | None = None
        for target in self._callable_targets(route, account):
            account.attempt(target)
            items = self.providers[target.provider].stream(request.messages, target, deadline, **request.options())
            try:
                return target, await anext(items), items
            except DaarionError as error:
                failure = _noted(error, account, deadline)
        raise failure or self._none_configured(route)

    def _callable_targets(self, route: Route, account: CallAccount) -> list[Target]:
        ready = []
        for target in route.targets:
            if self.providers[target.provider].unavailable_reason() is None:
                ready.append(target)
            else:
                account.skipped(target, ModelUnavailable.type)
        return ready

    def _none_configured(self, route: Route) -> ModelUnavailable:
        reasons = {target.provider: self.providers[target.provider].unavailable_reason() for target in route.targets}
        listed = "; ".join(f"provider `{provider}`: {reason}" for provider, reason in reasons.items())
        return ModelUnavailable(f"model `{route.logical_model}` is not available: {listed}")


class OpenStream:
    """A stream that has begun. Iterate it once, and close it however that ends: closing settles the call."""

    def __init__(self, target: Target, first: StreamItem, rest: AsyncIterator[StreamItem], account: CallAccount) -> None:
        self.target = target
        self._first = first
        self._rest = rest
        self._account = account

    async def items(self) -> AsyncIterator[StreamItem]:
        """Yields every item, the last of which is a StreamEnd. Raises the leaf of a failure half-way."""
        try:
            self._count(self._first)
            yield self._first
            async for item in self._rest:
                self._count(item)
                yield item
        except Exception as error:
            self._account.settle(outcome_of(error))
            raise

    async def close(self) -> None:
        """Stops the upstream and settles what was not settled: the caller left."""
        self._account.settle(OUTCOME_CANCELLED)
        await _close(self._rest)

    def _count(self, item: StreamItem) -> None:
        if isinstance(item, StreamDelta):
            self._account.delta(item)
            return
        self._account.attempt_ended(OUTCOME_OK, item.usage)
        self._account.settle(OUTCOME_OK)


def _noted(error: DaarionError, account: CallAccount, deadline: Deadline) -> DaarionError:
    """Records a failed attempt and returns its error; raises it when no further target should be tried."""
    account.attempt_ended(error.type)
    if not fails_over(error, deadline):
        raise error
    return error


def _deadline(request: ProxyRequest, route: Route) -> Deadline:
    """The caller's `timeout_s`, else what all targets of the route may take one after the other."""
    return Deadline.after(request.timeout_s or sum(target.timeouts.total_s for target in route.targets))


def _response(target: Target, answer: LLMResponse, account: CallAccount) -> ProxyResponse:
    return ProxyResponse(
        content=answer.content,
        usage=answer.usage,
        provider=target.provider,
        model_resolved=target.name,
        tool_calls=answer.tool_calls,
        reasoning_content=answer.reasoning,
        finish_reason=answer.finish_reason,
        request_id=account.request_id,
        latency_ms=account.latency_ms(),
        attempts=account.attempts,
    )


async def _close(items: AsyncIterator[StreamItem]) -> None:
    aclose = getattr(items, "aclose", None)
    if aclose is not None:
        await aclose()
