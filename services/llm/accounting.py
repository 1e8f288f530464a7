"""Accounts for one call: its attempts, the usage of each, and the outcome of the call.

It is settled once, into one event and one usage record.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from contracts.access.principals import acting
from contracts.errors import DaarionError, DeadlineExceeded
from contracts.events import EventLog
from contracts.identity import new_id
from contracts.llm.answers import Attempt, StreamDelta, TokenUsage
from contracts.llm.limits import (
    NANO_PER_USD,
    NOTHING,
    Caller,
    Limiter,
    Reservation,
    Spent,
)
from contracts.llm.ports import Prices
from contracts.llm.requests import CallMetadata, ChatOptions, ProxyRequest
from contracts.llm.routing import Route, Target
from contracts.llm.usage import (
    OUTCOME_LOST,
    AttemptRecord,
    UsageRecord,
    UsageSink,
    tokens_of,
)
from contracts.values import now_utc
from services.llm.call_spans import CallSpans
from services.llm.estimates import CallEstimate, completion_tokens, rough_prompt_tokens

OUTCOME_CANCELLED = "cancelled"
OUTCOME_INTERNAL = "internal"

GUESSED_TOKENS_PER_S = 50
"""Assumed writing speed of a provider, for whole answers that were cut off before they arrived."""

NO_USAGE = TokenUsage()

STREAMED_BYTES_PER_TOKEN = 4
"""Bytes of UTF-8 per token, for providers that put several tokens into one piece of a stream."""

PROVIDER_WORKED = frozenset(
    {OUTCOME_CANCELLED, OUTCOME_INTERNAL, DeadlineExceeded.type, "upstream_timeout"}
)
"""Outcomes after which the provider may have read the prompt although it sent nothing."""


@dataclass(slots=True)
class _Try:
    """One call of one target, running while `outcome` is None."""

    target: Target
    started: float
    outcome: str | None = None
    latency_ms: float = 0.0
    first_token_at: float | None = None
    deltas: int = 0
    streamed_bytes: int = 0
    usage: TokenUsage = NO_USAGE
    so_far: TokenUsage | None = None
    cost_usd: Decimal | None = None


class CallAccount:
    """Measures one call from its start.

    Every attempt has tokens and a cost of its own, accounted to the model that took them. `spans`
    begin and end with the call and its attempts. `settle` may be called at any time and ends the
    running attempt; further calls do nothing.
    """

    def __init__(
        self,
        request: ProxyRequest,
        route: Route,
        request_id: str,
        credential: str,
        *,
        streamed: bool,
        events: EventLog,
        sink: UsageSink,
        prices: Prices,
    ) -> None:
        self._request = request
        self._route = route
        self.request_id = request_id
        self.caller: Caller = caller_of(request.metadata, credential)
        self.spans = CallSpans("chat", route.logical_model, request.metadata)
        self.spans.asked(request.messages)
        self._streamed = streamed
        self._events = events
        self._sink = sink
        self._prices = prices
        self._estimate = CallEstimate(request, route, prices)
        self._started = time.monotonic()
        self._tries: list[_Try] = []
        self._reservation: Reservation | None = None
        self._id = new_id()
        self._occurred_at = now_utc()
        self._ticket: int | None = None
        self._settled = False
        self.attempts: list[Attempt] = []
        self.unreadable_events = 0
        self.cost_usd: Decimal | None = None  # once it is settled

    async def reserve(self, limiter: Limiter) -> None:
        """Reserves the call's estimate. Raises RateLimited, OverLimit or LimitsUnavailable."""
        self._reservation = await limiter.reserve(self.caller, self._estimate)

    def options(self) -> ChatOptions:
        """Returns the request's options.

        Where tokens or money are limited, `max_tokens` is at most what was reserved for the answer.
        """
        options = self._request.options()
        if self._estimate.is_counted and "max_tokens" not in options:
            options["max_tokens"] = completion_tokens(self._request)
        return options

    def needed_tokens(self) -> int:
        """Estimated tokens of prompt and answer, which a target's context must hold."""
        return self._estimate.prompt_tokens + completion_tokens(self._request)

    def attempt(self, target: Target) -> None:
        """Begins an attempt at `target`. Raises Overloaded: its usage cannot be recorded."""
        if self._ticket is None:
            prompt = rough_prompt_tokens(self._request)
            lost = self._record(
                target,
                outcome=OUTCOME_LOST,
                latency_ms=0.0,
                prompt_tokens=prompt,
                total_tokens=prompt,
                estimated=True,
            )
            self._ticket = self._sink.begin(lost)
        self._tries.append(_Try(target, time.monotonic()))
        self.spans.attempt(target)

    def attempt_ended(
        self, outcome: str, usage: TokenUsage | None = None, *, worked: bool = False
    ) -> None:
        """Ends the running attempt with the reported usage; does nothing when none is running.

        A missing report is estimated, and so is the prompt when only the answer was counted.
        `worked`: the provider worked although it sent nothing.
        """
        running = self._running()
        if running is None:
            return
        running.outcome = outcome
        running.latency_ms = _ms(time.monotonic() - running.started)
        running.usage = (
            self._with_prompt(usage)
            if usage is not None
            else running.so_far
            or self._estimated(running, worked=worked or outcome in PROVIDER_WORKED)
        )
        running.cost_usd = self._prices.cost(running.target, running.usage)
        self.spans.attempt_ended(outcome)
        target = running.target
        self.attempts.append(
            Attempt(
                provider=target.provider,
                model=target.name,
                outcome=outcome,
                latency_ms=running.latency_ms,
            )
        )

    def skipped(self, target: Target, outcome: str) -> None:
        """Lists a target that was not called because it cannot answer now."""
        self.spans.skipped(target, outcome)
        self.attempts.append(
            Attempt(provider=target.provider, model=target.name, outcome=outcome, latency_ms=0.0)
        )

    def delta(self, piece: StreamDelta) -> None:
        """Counts a streamed piece of the running attempt: at least one token, more if it is long.

        Some pieces hold the usage so far.
        """
        running = self._running()
        if running is None:
            return
        if running.first_token_at is None:
            running.first_token_at = time.monotonic()
        running.deltas += 1
        self.spans.answered(piece.content)
        running.streamed_bytes += _size(piece)
        running.so_far = piece.usage or running.so_far

    def silent_s(self) -> float:
        """Seconds since the running attempt began; zero once it has sent content."""
        running = self._running()
        return 0.0 if running is None or running.deltas else time.monotonic() - running.started

    @property
    def usage(self) -> TokenUsage:
        """Tokens of all attempts that have ended."""
        return total_usage(ended.usage for ended in self._tries)

    def latency_ms(self) -> float:
        """Milliseconds since the call began."""
        return _ms(time.monotonic() - self._started)

    def settle(self, outcome: str, finish_reason: str | None = None) -> None:
        """Ends the running attempt, settles the reservation, and emits the event.

        The record is written only when a provider was called.
        """
        if self._settled:
            return
        self._settled = True
        try:
            self.attempt_ended(outcome)
        finally:
            usage = self.usage
            if self._reservation is not None:
                self._reservation.settle(self._spent(usage))
        target = self._tries[-1].target if self._tries else None
        record = self._record(
            target,
            outcome=outcome,
            latency_ms=self.latency_ms(),
            ttft_ms=self._ttft_ms(),
            **tokens_of(usage),
            cost_usd=total_cost([(ended.usage, ended.cost_usd) for ended in self._tries]),
            attempts=len(self._tries),
            tries=tuple([_record_of(ended) for ended in self._tries]),
        )
        self.cost_usd = record.cost_usd
        self.spans.ended(record, finish_reason)
        self._emit(record)
        if self._ticket is not None:
            self._sink.record(record, self._ticket)

    def _running(self) -> _Try | None:
        return self._tries[-1] if self._tries and self._tries[-1].outcome is None else None

    def _with_prompt(self, usage: TokenUsage) -> TokenUsage:
        """Returns the reported usage, with an estimated prompt when only the answer was counted."""
        if not usage.estimated or usage.prompt_tokens:
            return usage
        prompt = self._estimate.prompt_tokens
        return usage.model_copy(
            update={"prompt_tokens": prompt, "total_tokens": prompt + usage.completion_tokens}
        )

    def _estimated(self, ended: _Try, *, worked: bool) -> TokenUsage:
        """Estimates the usage of an attempt that ended without a report.

        A stream is estimated by its pieces; a whole answer, or hidden reasoning, by its duration,
        up to the reserved completion.
        """
        if not ended.deltas and not worked:
            return NO_USAGE
        completion = max(ended.deltas, -(-ended.streamed_bytes // STREAMED_BYTES_PER_TOKEN))
        if not ended.deltas:
            completion = min(
                completion_tokens(self._request),
                math.ceil(ended.latency_ms / 1000 * GUESSED_TOKENS_PER_S),
            )
        prompt = self._estimate.prompt_tokens
        return TokenUsage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            estimated=True,
        )

    def _spent(self, usage: TokenUsage) -> Spent:
        if not self._tries:
            return NOTHING
        known = sum(
            (ended.cost_usd for ended in self._tries if ended.cost_usd is not None), Decimal(0)
        )
        return Spent(tokens=usage.total_tokens, nano_usd=int(known * NANO_PER_USD))

    def _emit(self, record: UsageRecord) -> None:
        event = record.event()
        if not self._tries:
            event["model"] = event["provider"] = None
        event["attempts"] = len(self.attempts)  # including skipped targets
        event["unreadable_events"] = self.unreadable_events
        self._events.emit("llm.call", **event)

    def _record(self, target: Target | None, **measured: Any) -> UsageRecord:
        return UsageRecord(
            id=self._id,
            occurred_at=self._occurred_at,
            request_id=self.request_id,
            agent_id=self.caller.agent_id,
            microdao_id=self.caller.microdao_id,
            channel_id=self._request.metadata.channel_id,
            credential=self.caller.credential,
            logical_model=self._route.logical_model,
            provider=target.provider if target else "",
            physical_model=target.name if target else "",
            streamed=self._streamed,
            trace_id=self.spans.trace_id,
            **measured,
        )

    def _ttft_ms(self) -> float | None:
        """Milliseconds to the first token that the caller received."""
        shown = self._tries[-1].first_token_at if self._tries else None
        return None if shown is None else _ms(shown - self._started)


def caller_of(metadata: CallMetadata, credential: str) -> Caller:
    """Returns the caller that `metadata` names, with the limits of the principal at work."""
    return Caller(metadata.agent_id, metadata.microdao_id, credential, acting().limits)


def _record_of(ended: _Try) -> AttemptRecord:
    return AttemptRecord(
        provider=ended.target.provider,
        physical_model=ended.target.name,
        outcome=ended.outcome or OUTCOME_INTERNAL,
        latency_ms=ended.latency_ms,
        **tokens_of(ended.usage),
        cost_usd=ended.cost_usd,
    )


def total_usage(parts: Iterable[TokenUsage]) -> TokenUsage:
    """Returns the sum: `estimated` if a part is; cached and reasoning tokens if a part has them."""
    used = [part for part in parts if part.total_tokens]
    if len(used) == 1:
        return used[0]
    return TokenUsage(
        prompt_tokens=sum(part.prompt_tokens for part in used),
        completion_tokens=sum(part.completion_tokens for part in used),
        total_tokens=sum(part.total_tokens for part in used),
        cached_tokens=_sum_of_known([part.cached_tokens for part in used]),
        reasoning_tokens=_sum_of_known([part.reasoning_tokens for part in used]),
        estimated=True if any(part.estimated for part in used) else None,
    )


def total_cost(parts: Sequence[tuple[TokenUsage, Decimal | None]]) -> Decimal | None:
    """Returns the sum of the costs, or None when an attempt that took tokens has no price."""
    if any(cost is None and usage.total_tokens for usage, cost in parts):
        return None
    known = [cost for _, cost in parts if cost is not None]
    return sum(known, Decimal(0)) if known else None


def outcome_of(error: BaseException) -> str:
    """Returns the stable name of a failure, for events and usage."""
    if isinstance(error, DaarionError):
        return error.type
    return OUTCOME_INTERNAL if isinstance(error, Exception) else OUTCOME_CANCELLED


def _sum_of_known(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _size(piece: StreamDelta) -> int:
    """Returns roughly the UTF-8 bytes of text, reasoning and tool calls."""
    size = sum(
        len(text) if text.isascii() else len(text.encode())
        for text in (piece.content, piece.reasoning, piece.refusal)
        if text
    )
    return size + sum(len(str(fragment.get("function", ""))) for fragment in piece.tool_calls or ())


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
