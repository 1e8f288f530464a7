"""Limits of LLM calls: their subjects, what a call reserves and spends, and the ports.

Money is counted in whole nano-dollars (10⁻⁹ USD), so that sums are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, get_args

from pydantic import Field

from contracts.shapes import Frozen, Strict
from contracts.values import now_utc

NANO_PER_USD = 1_000_000_000
WARN_PERCENT = 80
ANONYMOUS = "anonymous"
MAX_ID = 256

SubjectKind = Literal["agent", "microdao", "credential"]
Meter = Literal[
    "requests_per_minute", "tokens_per_minute", "concurrent_calls", "usd_per_day", "usd_per_month"
]

CALENDAR: frozenset[Meter] = frozenset({"usd_per_day", "usd_per_month"})
"""Meters of a UTC day or month, in nano-dollars."""


def shown(meter: Meter, units: int) -> int | float:
    """Returns `units` as users see them: money in dollars."""
    return units / NANO_PER_USD if meter in CALENDAR else units


Count = Annotated[int, Field(ge=1, le=10**12)]
Dollars = Annotated[
    Decimal, Field(gt=0, le=10**9, max_digits=18, decimal_places=9, allow_inf_nan=False)
]


class RateSettings(Strict):
    """Limits of one subject; null means unlimited. An override inherits what it leaves out.

    Tokens are those of prompt and answer together. A minute slides; days and months are those of
    the calendar in UTC.
    """

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    concurrent_calls: Count | None = None
    usd_per_day: Dollars | None = None
    usd_per_month: Dollars | None = None

    def over(self, base: RateSettings) -> RateSettings:
        """Returns these limits, with those of `base` for the ones left out."""
        return base.model_copy(update={name: getattr(self, name) for name in self.model_fields_set})

    def within(self, other: RateSettings) -> RateSettings:
        """Returns the smaller limit of each meter."""
        given = {
            meter: [
                limit for rates in (self, other) if (limit := getattr(rates, meter)) is not None
            ]
            for meter in get_args(Meter)
        }
        return RateSettings(**{meter: min(limits) for meter, limits in given.items() if limits})

    def amounts(self) -> Iterator[tuple[Meter, int]]:
        """Yields every limit that is set, in its meter's units: money in nano-dollars."""
        for meter in get_args(Meter):
            value = getattr(self, meter)
            if value is not None:
                yield meter, int(value * NANO_PER_USD) if meter in CALENDAR else value


@dataclass(frozen=True, slots=True)
class Caller:
    """The agent, microDAO and credential that a call counts for.

    `credential` is the name of the presented credential, never the secret; `anonymous` where none
    is demanded. `granted` are limits that the principal behind it has of its own, if it has any.
    """

    agent_id: str
    microdao_id: str
    credential: str = ANONYMOUS
    granted: RateSettings | None = field(default=None, compare=False)


class LimitKey(NamedTuple):
    """One limit of one subject."""

    kind: SubjectKind
    subject: str
    meter: Meter


@dataclass(frozen=True, slots=True)
class LimitWarning:
    """A subject has used `WARN_PERCENT` of a limit. Amounts are in the meter's units; `period` is
    the day or month of a budget, empty for a limit per minute.
    """

    subject: ClassVar[str] = "limit.warning"

    key: LimitKey
    amount: int
    used: int
    period: str

    def fields(self) -> dict[str, Any]:
        """Returns what the event and the message say: money in dollars."""
        return {
            "limit": f"{self.key.kind}.{self.key.meter}",
            "subject": self.key.subject,
            "period": self.period or None,
            "amount": shown(self.key.meter, self.amount),
            "used": shown(self.key.meter, self.used),
        }

    def message(self) -> dict[str, Any]:
        """Returns the message. A budget's `event_id` is the same when it is published twice."""
        now = now_utc().isoformat()
        return {
            "event_id": f"{self.subject}-{'-'.join(self.key)}-{self.amount}-{self.period or now}",
            "ts": now,
            **self.fields(),
        }


class Limit(NamedTuple):
    """A limit in force, in its meter's units: requests, tokens, calls or nano-dollars."""

    key: LimitKey
    amount: int


LimitsOf = Callable[[Caller], Sequence[Limit]]
"""Returns the limits of a caller."""


@dataclass(frozen=True)
class Estimate:
    """Upper estimate of a call's use; read only where a limit counts it."""

    tokens: int = 0
    nano_usd: int = 0


@dataclass(frozen=True, slots=True)
class Spent:
    """A call's use. `requests` is zero where no provider was called."""

    requests: int = 1
    tokens: int = 0
    nano_usd: int = 0


NOTHING = Spent(requests=0)


class Reservation(Protocol):
    """Units reserved for one running call."""

    def settle(self, spent: Spent) -> None:
        """Replaces the reserved units by the spent ones; further calls do nothing. No I/O, no
        errors.
        """


class Limiter(Protocol):
    """Admission. Cheap: no database, normally no call at all."""

    async def reserve(self, caller: Caller, estimate: Estimate) -> Reservation:
        """Reserves one request, one running call, and the estimated tokens and money.

        Raises:
            RateLimited: a limit would be exceeded; says which one, what is left and when to come
                back.
            LimitsUnavailable: the limits cannot be kept now, so nothing is admitted.
        """


Id = Annotated[str, Field(min_length=1, max_length=MAX_ID)]


class LimitsFilter(Strict):
    """Whose limits to show: an agent's, a microDAO's, or both.

    Those of the presented credential are always shown.
    """

    agent_id: Id | None = None
    microdao_id: Id | None = None


class LimitState(Frozen):
    """One limit as it stands now.

    Amounts are requests, tokens, calls or dollars, by `limit`. `used` has been spent within the
    window, `reserved` is set aside for running calls or leased to replicas. `reset_s` is the time
    in seconds until all of `used` is free again, if nothing more is spent; it is None for running
    calls, which free their slot when they end.
    """

    limit: str
    subject: str
    per: Literal["minute", "day", "month"] | None
    amount: int | float
    used: int | float
    reserved: int | float
    left: int | float
    reset_s: float | None


class LimitsPage(Frozen):
    """Body of `GET /internal/llm/limits`: every limit that applies; what has none is not listed."""

    limits: list[LimitState]
