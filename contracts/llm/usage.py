"""The usage ledger's wire shapes and ports: what one LLM call consumed, and how it is asked for.

A record is written once per call and never changed. Contents of prompts and answers are not part of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Literal, NamedTuple, Protocol
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from contracts.identity import new_id
from contracts.llm.limits import ANONYMOUS
from contracts.values import MAX_TEXT, Instant, now_utc, storable_text, utc

MAX_COUNT = 2**53 - 1
MAX_USD = 1_000_000_000
MAX_PAGE = 1000
OUTCOME_OK = "ok"
OUTCOME_LOST = "lost"
"""Of a call whose process died before it ended: what it took is estimated."""
NOT_BEGUN = -1
"""The ticket of a call that was not noted as begun."""

_BILLIONTH = Decimal("1e-9")

GroupKey = Literal["agent", "microdao", "model", "provider", "day"]


def actor(agent_id: str) -> dict[str, str]:
    """Returns who acted, as DAARION's usage engine asks for it in every event."""
    return {
        "actor_id": agent_id,
        "actor_type": "human" if agent_id.startswith("user:") else "agent",
    }


def distinct(keys: tuple[GroupKey, ...]) -> tuple[GroupKey, ...]:
    """Returns the keys in their order, each once."""
    return tuple(dict.fromkeys(keys))


def billionths(value: Decimal) -> Decimal:
    """Returns a sum of money rounded to a billionth of a dollar, the ledger's precision."""
    return value.quantize(_BILLIONTH)


def _aware(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("time needs a zone")
    return utc(value)


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One attempt of a call, at the model that was called; fields as those of UsageRecord.

    `cost_usd` is None where the price is not known.
    """

    provider: str
    physical_model: str
    outcome: str
    latency_ms: float
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False
    cost_usd: Decimal | None = None


@dataclass(slots=True, kw_only=True)
class UsageRecord:
    """One LLM call as it was accounted: what all its attempts took together, and `tries`, what each of them took.

    `outcome` is "ok", "cancelled" or the stable `type` of the error. Tokens of a failed or abandoned call are those
    that the provider had charged by then; `estimated` says that they were counted here because it did not tell.
    `cost_usd` is None unless every attempt that took tokens has a price. `credential` is the name of the caller's; whoever
    writes the record adds its own name as `recorder`. Without `tries` the call is its own only attempt. Later fields need a
    default, because a journal may outlive the version that wrote it.

    A plain class, because one is made for every call. Names are made storable (`storable_text`), times UTC and money
    billionths; raises ValueError for numbers that no call can have.
    """

    request_id: str
    agent_id: str
    microdao_id: str
    logical_model: str
    provider: str
    physical_model: str
    latency_ms: float
    channel_id: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    ttft_ms: float | None = None
    outcome: str = OUTCOME_OK
    streamed: bool = False
    estimated: bool = False
    attempts: int = 1
    cost_usd: Decimal | None = None
    credential: str = ANONYMOUS
    tries: tuple[AttemptRecord, ...] = ()
    id: UUID = field(default_factory=new_id)
    occurred_at: datetime = field(default_factory=now_utc)

    def __post_init__(self) -> None:
        self.request_id, self.agent_id = (
            storable_text(self.request_id),
            storable_text(self.agent_id),
        )
        self.microdao_id, self.logical_model = (
            storable_text(self.microdao_id),
            storable_text(self.logical_model),
        )
        self.provider, self.physical_model = (
            storable_text(self.provider),
            storable_text(self.physical_model),
        )
        self.outcome, self.credential = storable_text(self.outcome), storable_text(self.credential)
        if self.channel_id is not None:
            self.channel_id = storable_text(self.channel_id)
        counts = (
            self.prompt_tokens,
            self.completion_tokens,
            self.total_tokens,
            self.cached_tokens,
            self.reasoning_tokens,
            self.attempts,
        )
        if min(counts) < 0 or max(counts) > MAX_COUNT:
            raise ValueError("a count is negative or over the bound")
        if not (0 <= self.latency_ms < math.inf and 0 <= (self.ttft_ms or 0) < math.inf):
            raise ValueError("a duration is negative or no number")
        if self.cost_usd is not None:
            if not (self.cost_usd.is_finite() and 0 <= self.cost_usd < MAX_USD):
                raise ValueError("a cost is negative, over the bound or no number")
            self.cost_usd = billionths(self.cost_usd)
        if self.occurred_at.tzinfo is not UTC:
            self.occurred_at = _aware(self.occurred_at)


class UsageFilter(BaseModel):
    """Which calls to sum up, over `start` ≤ time < `end`, and by what.

    Without `group_by` the answer is one row, the total. `cursor` is a former page's `next_cursor`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    agent_id: str | None = Field(default=None, max_length=MAX_TEXT)
    microdao_id: str | None = Field(default=None, max_length=MAX_TEXT)
    model: str | None = Field(default=None, max_length=MAX_TEXT)
    provider: str | None = Field(default=None, max_length=MAX_TEXT)
    start: Instant | None = None
    end: Instant | None = None
    group_by: Annotated[tuple[GroupKey, ...], AfterValidator(distinct)] = Field(
        default=(), max_length=5
    )
    cursor: str | None = Field(default=None, max_length=4096)
    limit: int = Field(default=100, ge=1, le=MAX_PAGE)


class UsageRow(BaseModel):
    """Sums over the calls that share the group keys; keys that were not asked for are None.

    `model` is the logical model, `day` a day in UTC. Tokens and cost are those of every attempt, accounted to the provider that
    was called; a call is counted where it ended. `cost_usd` sums the attempts that had a price and is None when none had;
    `unpriced` counts those that took tokens and had none.
    """

    model_config = ConfigDict(frozen=True)

    agent_id: str | None = None
    microdao_id: str | None = None
    model: str | None = None
    provider: str | None = None
    day: date | None = None
    calls: int
    errors: int
    attempts: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    cost_usd: Decimal | None = None
    unpriced: int = 0


class UsagePage(BaseModel):
    """Rows in the order of their group keys, and the range they cover; `next_cursor` is None on the last page."""

    model_config = ConfigDict(frozen=True)

    rows: list[UsageRow]
    start: datetime
    end: datetime
    next_cursor: str | None = None


class BegunCall(NamedTuple):
    """What is known of a call when its first provider is asked, in the terms of UsageRecord; enough to account for it if nobody ends it."""

    id: UUID
    occurred_at: datetime
    request_id: str
    agent_id: str
    microdao_id: str
    channel_id: str | None
    logical_model: str
    provider: str
    physical_model: str
    prompt_tokens: int
    streamed: bool
    credential: str

    def lost(self) -> UsageRecord:
        """Returns the record of a call that nobody ended: its prompt, estimated."""
        return UsageRecord(
            **self._asdict(),
            total_tokens=self.prompt_tokens,
            latency_ms=0.0,
            outcome=OUTCOME_LOST,
            estimated=True,
        )


class UsageSink(Protocol):
    """Where calls are recorded. Both return at once, do no I/O and raise nothing: they are called on the path of an answer."""

    def begin(self, call: BegunCall) -> int:
        """Notes a call that a provider is asked now; should this process die, it is accounted as lost. Returns its ticket."""

    def record(self, record: UsageRecord, ticket: int = NOT_BEGUN) -> None:
        """Takes the record of a call that has ended, and with it what `begin` noted."""


class UsageReader(Protocol):
    """Where sums are read."""

    async def query(self, usage_filter: UsageFilter) -> UsagePage:
        """Sums up the ledger. The filter's `start` and `end` are set.

        Raises:
            InvalidRequest: a cursor that belongs to another query.
            DatabaseUnavailable: the ledger cannot be read now.
        """
