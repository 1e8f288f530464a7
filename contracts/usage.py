"""The usage ledger's wire shapes and ports: what one LLM call consumed, and how it is asked for.

A record is written once per call and never changed. Contents of prompts and answers are not part of it.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Literal, Protocol
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from contracts.limits import ANONYMOUS

MAX_TEXT = 256
MAX_COUNT = 2**53 - 1
MAX_PAGE = 1000
OUTCOME_OK = "ok"

GroupKey = Literal["agent", "microdao", "model", "provider", "day"]


def new_record_id() -> UUID:
    """Returns a time-ordered unique id (RFC 9562, version 7), so that the ledger's key grows at one end."""
    milliseconds = time.time_ns() // 1_000_000
    entropy = random.getrandbits(74)
    value = (milliseconds & (2**48 - 1)) << 80 | 7 << 76 | (entropy >> 62) << 64 | 2 << 62 | entropy & (2**62 - 1)
    return UUID(int=value)


def storable_text(value: str) -> str:
    """Returns `value` as the database can keep it: no NUL, no lone surrogate, at most `MAX_TEXT` characters.

    A call that was served must be accounted for even when a name in it is odd, so this replaces instead of refusing.
    """
    if value.isascii() and "\0" not in value:
        return value[:MAX_TEXT]
    return value[:MAX_TEXT].replace("\0", "�").encode("utf-8", "replace").decode("utf-8")


def utc(value: datetime) -> datetime:
    """Returns the same instant in UTC. Raises ValueError where that leaves the calendar."""
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("time is out of range") from None


def distinct(keys: tuple[GroupKey, ...]) -> tuple[GroupKey, ...]:
    """Returns the keys in their order, each once."""
    return tuple(dict.fromkeys(keys))


def billionths(value: Decimal) -> Decimal:
    """Returns a sum of money rounded to a billionth of a dollar, the ledger's precision."""
    return value.quantize(Decimal("1e-9"))


Text = Annotated[str, AfterValidator(storable_text)]
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Money = Annotated[Decimal, Field(ge=0, lt=1_000_000_000, allow_inf_nan=False), AfterValidator(billionths)]
Instant = Annotated[AwareDatetime, AfterValidator(utc)]


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


class UsageRecord(BaseModel):
    """One LLM call as it was accounted: what all its attempts took together, and `tries`, what each of them took.

    `outcome` is "ok", "cancelled" or the stable `type` of the error. Tokens of a failed or abandoned call are those
    that the provider had charged by then; `estimated` says that they were counted here because it did not tell.
    `cost_usd` is None unless every attempt that took tokens has a price. `credential` is the name of the caller's; the
    sink puts its own name into `recorder`. Without `tries` the call is its own only attempt. Unknown keys are ignored and
    later fields need a default, because a journal may outlive the version that wrote it.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: UUID = Field(default_factory=new_record_id)
    request_id: Text
    occurred_at: Instant = Field(default_factory=lambda: datetime.now(UTC))
    agent_id: Text
    microdao_id: Text
    channel_id: Text | None = None
    logical_model: Text
    provider: Text
    physical_model: Text
    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    total_tokens: Count = 0
    cached_tokens: Count = 0
    reasoning_tokens: Count = 0
    latency_ms: Milliseconds
    ttft_ms: Milliseconds | None = None
    outcome: Text = OUTCOME_OK
    streamed: bool = False
    estimated: bool = False
    attempts: Annotated[int, Field(ge=0, le=1000)] = 1
    cost_usd: Money | None = None
    credential: Text = ANONYMOUS
    recorder: Text = ""
    tries: tuple[AttemptRecord, ...] = ()


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
    group_by: Annotated[tuple[GroupKey, ...], AfterValidator(distinct)] = Field(default=(), max_length=5)
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


class UsageSink(Protocol):
    """Where calls are recorded."""

    def record(self, record: UsageRecord) -> None:
        """Takes one record. Returns at once, does no I/O and raises nothing: it is called on the path of an answer."""


class UsageReader(Protocol):
    """Where sums are read."""

    async def query(self, usage_filter: UsageFilter) -> UsagePage:
        """Sums up the ledger. The filter's `start` and `end` are set.

        Raises:
            InvalidRequest: a cursor that belongs to another query.
            DatabaseUnavailable: the ledger cannot be read now.
        """
