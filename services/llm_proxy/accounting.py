"""One call's account: what was tried, what it took, how it ended. Settled once, as one event and one usage record."""

from __future__ import annotations

import time

from contracts.errors import DaarionError
from contracts.llm import Attempt, ProxyRequest, StreamDelta, TokenUsage
from contracts.ports import EventLog
from contracts.routing import Route, Target
from contracts.usage import OUTCOME_OK, UsageRecord, UsageSink

OUTCOME_CANCELLED = "cancelled"
OUTCOME_INTERNAL = "internal"


class CallAccount:
    """Measures one call from its start; `settle` may be called once, further calls do nothing."""

    def __init__(self, request: ProxyRequest, request_id: str, *, streamed: bool) -> None:
        self._request = request
        self.request_id = request_id
        self._streamed = streamed
        self._started = time.monotonic()
        self._attempt_started = self._started
        self._first_token_at: float | None = None
        self._deltas = 0
        self._target: Target | None = None
        self._settled = False
        self.attempts: list[Attempt] = []
        self.usage = TokenUsage()

    def attempt(self, target: Target) -> None:
        """Notes that `target` is being called."""
        self._target, self._attempt_started = target, time.monotonic()

    def attempt_ended(self, outcome: str) -> None:
        """Notes how the running attempt ended."""
        if self._target is not None:
            took = _ms(time.monotonic() - self._attempt_started)
            self.attempts.append(Attempt(provider=self._target.provider, model=self._target.name, outcome=outcome, latency_ms=took))

    def skipped(self, target: Target, outcome: str) -> None:
        """Notes a target that was not called because it cannot answer now."""
        self.attempts.append(Attempt(provider=target.provider, model=target.name, outcome=outcome, latency_ms=0.0))

    def delta(self, _: StreamDelta) -> None:
        """Counts a streamed piece: upstreams send about one for each token."""
        if self._first_token_at is None:
            self._first_token_at = time.monotonic()
        self._deltas += 1

    def latency_ms(self) -> float:
        """Milliseconds since the call began."""
        return _ms(time.monotonic() - self._started)

    def settle(self, outcome: str, events: EventLog, sink: UsageSink, route: Route) -> None:
        """Writes the event and, where a provider was called, the usage record."""
        if self._settled:
            return
        self._settled = True
        if outcome != OUTCOME_OK and self._deltas and not self.usage.completion_tokens:
            self.usage = TokenUsage(completion_tokens=self._deltas, total_tokens=self._deltas, estimated=True)
        latency = self.latency_ms()
        self._emit(outcome, latency, events, route)
        if self._target is not None:
            sink.record(self._record(outcome, latency, self._target, route))

    def _emit(self, outcome: str, latency: float, events: EventLog, route: Route) -> None:
        caller = self._request.metadata
        target = self._target
        events.emit(
            "llm.call",
            request_id=self.request_id,
            agent_id=caller.agent_id,
            microdao_id=caller.microdao_id,
            channel_id=caller.channel_id,
            logical_model=route.logical_model,
            model=target.name if target else None,
            provider=target.provider if target else None,
            streamed=self._streamed,
            latency_ms=latency,
            ttft_ms=self._ttft_ms(),
            prompt_tokens=self.usage.prompt_tokens,
            completion_tokens=self.usage.completion_tokens,
            total_tokens=self.usage.total_tokens,
            estimated=self.usage.estimated,
            attempts=len(self.attempts),
            outcome=outcome,
        )

    def _record(self, outcome: str, latency: float, target: Target, route: Route) -> UsageRecord:
        caller = self._request.metadata
        return UsageRecord(
            request_id=self.request_id,
            agent_id=caller.agent_id,
            microdao_id=caller.microdao_id,
            channel_id=caller.channel_id,
            logical_model=route.logical_model,
            provider=target.provider,
            physical_model=target.name,
            prompt_tokens=self.usage.prompt_tokens,
            completion_tokens=self.usage.completion_tokens,
            total_tokens=self.usage.total_tokens,
            cached_tokens=self.usage.cached_tokens or 0,
            reasoning_tokens=self.usage.reasoning_tokens or 0,
            latency_ms=latency,
            ttft_ms=self._ttft_ms(),
            outcome=outcome,
            streamed=self._streamed,
            estimated=bool(self.usage.estimated),
            attempts=max(1, len(self.attempts)),
        )

    def _ttft_ms(self) -> float | None:
        return None if self._first_token_at is None else _ms(self._first_token_at - self._started)


def outcome_of(error: BaseException) -> str:
    """The stable name of a failure, for events and usage."""
    if isinstance(error, DaarionError):
        return error.type
    return OUTCOME_INTERNAL if isinstance(error, Exception) else OUTCOME_CANCELLED


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
