"""The LLM proxy: answers a request for a logical model by the first target that can."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from contracts.deadline import Deadline
from contracts.events import EventLog
from contracts.llm.answers import LLMResponse, ProxyResponse, TokenUsage
from contracts.llm.limits import Limiter
from contracts.llm.listings import CircuitInfo, ModelInfo, ModelList
from contracts.llm.ports import ChatProvider, ModelRouter, Prices
from contracts.llm.requests import MAX_TIMEOUT_S, ProxyRequest
from contracts.llm.routing import Route, Spill, Target
from contracts.llm.usage import OUTCOME_OK, UsageSink
from services.llm.accounting import CallAccount, outcome_of
from services.llm.attempts import Circuits, RouteAttempts
from services.llm.spillover import Spillover, TargetCandidate, order_targets, queue_depth
from services.llm.streams import OpenStream, StartedStream, start_stream
from services.llm.thoughts import reasoning_of, without_thoughts

__all__ = ["LLMProxy", "OpenStream"]

PRICED = TokenUsage(prompt_tokens=750_000, completion_tokens=250_000, total_tokens=1_000_000)
"""A typical mix of a million tokens, by whose price targets are compared."""


@dataclass(frozen=True)
class LLMProxy:
    """The use cases of the LLM proxy over its ports.

    `circuits` and `spillover` hold the replica's state of its targets; they are given from outside
    because they outlive a reload.
    """

    router: ModelRouter
    providers: Mapping[str, ChatProvider]
    limiter: Limiter
    usage: UsageSink
    events: EventLog
    prices: Prices
    circuits: Circuits = field(default_factory=Circuits)
    spillover: Spillover = field(default_factory=Spillover)

    async def complete(
        self, request: ProxyRequest, request_id: str, *, credential: str
    ) -> ProxyResponse:
        """Returns one whole answer, from the first target of the route that gives one.

        Raises:
            UnknownModel: no such logical model.
            RateLimited: a limit of ours is exhausted.
            ModelUnavailable: no target is configured.
            CircuitOpen: the circuits of all targets are open.
            DaarionError: the leaf of the last target's failure.
        """
        _, account, attempts = self._begin(request, request_id, credential, streamed=False)

        async def ask(provider: ChatProvider, target: Target) -> LLMResponse:
            answer = await provider.chat(
                request.messages, target, attempts.deadline, **account.options()
            )
            return without_thoughts(answer, reasoning_of(target, request.messages))

        try:
            await account.reserve(self.limiter)
            served = await attempts.serve(ask)
            served.permit.succeeded(time.monotonic())
            account.attempt_ended(OUTCOME_OK, served.result.usage)
        except BaseException as error:
            account.settle(outcome_of(error))
            raise
        account.spans.answered(served.result.content)
        account.settle(OUTCOME_OK, served.result.finish_reason)
        return _response(served.target, served.result, account)

    async def open_stream(
        self, request: ProxyRequest, request_id: str, *, credential: str
    ) -> OpenStream:
        """Returns a stream whose first item has arrived, so that earlier failures can be raised.

        The caller must iterate the stream or close it. Raises as `complete`.
        """
        route, account, attempts = self._begin(request, request_id, credential, streamed=True)

        async def ask(provider: ChatProvider, target: Target) -> StartedStream:
            return await start_stream(
                provider, target, attempts, request.messages, account.options()
            )

        try:
            await account.reserve(self.limiter)
            served = await attempts.serve(ask)
        except BaseException as error:
            account.settle(outcome_of(error))
            raise
        served.permit.alive(time.monotonic())
        return OpenStream(
            served, request, attempts, account, resumes=route.stream_recovery == "resume"
        )

    def models(self) -> ModelList:
        """Returns every logical model with its availability and, where it has none, the reason."""
        return ModelList(models=[self._info(route) for route in self.router.routes()])

    def _info(self, route: Route) -> ModelInfo:
        target, provider = route.primary, self.providers[route.primary.provider]
        condition, circuit = provider.condition(target), self.circuits.of(target)
        now = time.monotonic()
        wait_s = circuit.wait_s(now)
        left_alone = (
            f"left alone after failures: retry in {math.ceil(wait_s)} s" if wait_s else None
        )
        reason = provider.unavailable_reason() or condition.not_ready or left_alone
        return ModelInfo(
            id=route.logical_model,
            provider=target.provider,
            name=target.name,
            available=reason is None,
            reason=reason,
            load=condition.load,
            circuit=CircuitInfo(
                state=circuit.state(now),
                in_flight=circuit.in_flight,
                retry_after_s=round(wait_s, 3) if wait_s else None,
            ),
            fallbacks=list(route.fallbacks),
            spills_over=None if route.spill is None else self._is_busy(route, route.spill),
        )

    def _begin(
        self, request: ProxyRequest, request_id: str, credential: str, *, streamed: bool
    ) -> tuple[Route, CallAccount, RouteAttempts]:
        route = self.router.route(request.model)
        account = CallAccount(
            request,
            route,
            request_id,
            credential,
            streamed=streamed,
            events=self.events,
            sink=self.usage,
            prices=self.prices,
        )
        attempts = RouteAttempts(
            self._targets(route),
            self.providers,
            self.circuits,
            account,
            deadline=_deadline(request, route),
            logical_model=route.logical_model,
            deadline_is_callers=request.timeout_s is not None,
        )
        return route, account, attempts

    def _targets(self, route: Route) -> Sequence[Target]:
        """Returns the targets in the order in which this call should try them."""
        if route.spill is None:
            return route.targets
        own = [TargetCandidate(target, callable_now=True) for target in route.targets]
        spill = [
            TargetCandidate(
                target, self._callable_now(target), self._price(target), self._quota_left(target)
            )
            for target in route.spill.targets
        ]
        return order_targets(own, spill, busy=self._is_busy(route, route.spill))

    def _is_busy(self, route: Route, spill: Spill) -> bool:
        target = route.primary
        depth = queue_depth(self.providers[target.provider].condition(target))
        return self.spillover.busy(
            route.logical_model, spill, depth, callable_now=self._callable_now(target)
        )

    def _callable_now(self, target: Target) -> bool:
        provider = self.providers[target.provider]
        return (
            provider.unavailable_reason() is None
            and provider.condition(target).not_ready is None
            and self._quota_left(target) != 0
            and self.circuits.of(target).wait_s(time.monotonic()) <= 0
        )

    def _quota_left(self, target: Target) -> float | None:
        return self.providers[target.provider].quota_left(target)

    def _price(self, target: Target) -> float | None:
        cost = self.prices.cost(target, PRICED)
        return None if cost is None else float(cost)


def _deadline(request: ProxyRequest, route: Route) -> Deadline:
    """Returns the caller's `timeout_s`, else the time for all targets in turn with their waits."""
    if request.timeout_s is not None:
        return Deadline.after(request.timeout_s)
    return Deadline.after(min(route.longest_s, MAX_TIMEOUT_S))


def _response(target: Target, answer: LLMResponse, account: CallAccount) -> ProxyResponse:
    return ProxyResponse(
        content=answer.content,
        usage=answer.usage,
        provider=target.provider,
        model_resolved=target.name,
        tool_calls=answer.tool_calls,
        reasoning_content=answer.reasoning,
        refusal=answer.refusal,
        finish_reason=answer.finish_reason,
        request_id=account.request_id,
        latency_ms=account.latency_ms(),
        cost_usd=account.cost_usd,
        attempts=account.attempts,
    )
