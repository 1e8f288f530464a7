"""The usage ledger's wire shapes and ports: records of LLM calls, and sums over them.

A record is written once per call and never changed. Contents of prompts and answers are not part of
it.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from operator import attrgetter
from typing import Annotated, Any, Literal, Protocol
from uuid import UUID

from pydantic import AfterValidator, Field

from contracts.errors import InvalidRequest
from contracts.identity import new_id
from contracts.llm.answers import TokenUsage
from contracts.llm.limits import ANONYMOUS
from contracts.shapes import Frozen, Strict
from contracts.values import MAX_TEXT, Instant, now_utc, storable_text, utc

MAX_COUNT = 2**53 - 1
MAX_USD = 1_000_000_000
MAX_PAGE = 1000
DEFAULT_RANGE = timedelta(hours=24)
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
MAX_RANGE = timedelta(days=400)
OUTCOME_OK = "ok"
OUTCOME_LOST = "lost"
"""The outcome of a call whose process died before it ended; its tokens are estimated."""

_BILLIONTH = Decimal("1e-9")

GroupKey = Literal["agent", "microdao", "model", "provider", "day", "trace"]


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


_NOT_OF_ATTEMPTS = {"in_attempts": False}
"""Marks fields that the rows of a call's attempts do not repeat."""
_NOT_LOGGED = {"logged": False}


@dataclass
class AttemptRecord:
    """The usage of one attempt at a model.

    Tokens of a failed or abandoned attempt are those that the provider had charged by then;
    `estimated` marks our own count. `cost_usd` is None where no price is known.
    """

    provider: str
    physical_model: str
    outcome: str
    latency_ms: float
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = field(default=0, metadata=_NOT_LOGGED)
    reasoning_tokens: int = field(default=0, metadata=_NOT_LOGGED)
    estimated: bool = False
    cost_usd: Decimal | None = None


@dataclass(kw_only=True)
class UsageRecord(AttemptRecord):
    """One LLM call: the sums over its attempts, and in `tries` each attempt.

    Every other list of these fields derives from this class: the journal's lines, the columns of
    `llm_usage` and `llm_attempts`, the message `usage.llm`, the event `llm.call`. A new field needs
    a column, and a default, because a journal may outlive the version that wrote it.

    `provider` and `physical_model` are those of the last attempt. `outcome` is "ok", "cancelled",
    "lost" or the stable `type` of the error. `cost_usd` is None unless every attempt that took
    tokens has a price. A record without `tries` is its own only attempt. `credential` is the name
    of the caller's; the writer sets `recorder` to its own name. `trace_id` is that of the call's
    trace, where the process traces.

    A plain class without slots, because one is made for every call and orjson writes its `__dict__`
    three times faster. Names are made storable (`storable_text`), times UTC and money billionths.
    Raises ValueError for numbers that no call can have.
    """

    request_id: str
    agent_id: str
    microdao_id: str
    logical_model: str
    channel_id: str | None = None
    trace_id: str | None = None
    ttft_ms: float | None = field(default=None, metadata=_NOT_OF_ATTEMPTS)
    streamed: bool = False
    attempts: int = field(default=1, metadata=_NOT_OF_ATTEMPTS)
    credential: str = field(default=ANONYMOUS, metadata=_NOT_LOGGED)
    recorder: str = field(default="", metadata=_NOT_LOGGED)
    tries: tuple[AttemptRecord, ...] = field(default=(), metadata=_NOT_OF_ATTEMPTS | _NOT_LOGGED)
    id: UUID = field(default_factory=new_id, metadata=_NOT_OF_ATTEMPTS | _NOT_LOGGED)
    occurred_at: datetime = field(default_factory=now_utc, metadata=_NOT_LOGGED)

    def __post_init__(self) -> None:
        self.request_id = storable_text(self.request_id)
        self.agent_id = storable_text(self.agent_id)
        self.microdao_id = storable_text(self.microdao_id)
        self.logical_model = storable_text(self.logical_model)
        self.provider = storable_text(self.provider)
        self.physical_model = storable_text(self.physical_model)
        self.outcome = storable_text(self.outcome)
        self.credential = storable_text(self.credential)
        if self.channel_id is not None:
            self.channel_id = storable_text(self.channel_id)
        counts = _COUNTS(self)
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

    def event(self) -> dict[str, Any]:
        """Returns the fields of the event `llm.call`, which the metrics read."""
        values = self.__dict__
        found = {name: values[name] for name in _LOGGED}
        found["model"] = found.pop("physical_model")
        if self.cost_usd is not None:
            found["cost_usd"] = float(self.cost_usd)
        return found


def _names(record: type[AttemptRecord], *without: str) -> tuple[str, ...]:
    """Returns the names of a record's fields."""
    return tuple(each.name for each in fields(record) if each.name not in without)


ATTEMPT_FIELDS = _names(AttemptRecord)
TOKEN_FIELDS = tuple(name for name in ATTEMPT_FIELDS if name.endswith("_tokens"))
CALL_FIELDS = _names(UsageRecord, "tries")
SHARED_FIELDS = tuple(
    each.name
    for each in fields(UsageRecord)
    if each.name not in ATTEMPT_FIELDS and each.metadata.get("in_attempts", True)
)
"""Fields of the call that the rows of its attempts repeat."""
_COUNTS = attrgetter(*TOKEN_FIELDS, "attempts")
_LOGGED = tuple(each.name for each in fields(UsageRecord) if each.metadata.get("logged", True))
_MESSAGE_FIELDS = _names(UsageRecord, "tries", "attempts", "recorder")


def tokens_of(usage: TokenUsage) -> dict[str, Any]:
    """Returns the known counts of `usage` as fields of a record."""
    return {name: value for name, value in usage.__dict__.items() if value is not None}


def usage_message(call: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the body of the message `usage.llm`: what DAARION's usage engine demands, and more.

    `call` holds the fields of a UsageRecord as the journal or the ledger has them. Money is a
    decimal text of US dollars, or null where no price is known.
    """
    ended = call["outcome"]
    return {name: call.get(name) for name in _MESSAGE_FIELDS} | {
        "attempts": [
            {name: tried.get(name) for name in ATTEMPT_FIELDS}
            for tried in call.get("tries") or [call]
        ],
        "event_id": call["id"],
        "timestamp": call["occurred_at"],
        **actor(call["agent_id"]),
        "model": call["physical_model"],
        "latency_ms": round(call["latency_ms"]),
        "success": ended == OUTCOME_OK,
        "error": None if ended == OUTCOME_OK else ended,
    }


class UsageFilter(Strict):
    """Which calls to sum up, over `start` ≤ time < `end`, and by what.

    Without `group_by` the answer is one row, the total. `cursor` is a former page's `next_cursor`.
    """

    agent_id: str | None = Field(default=None, max_length=MAX_TEXT)
    microdao_id: str | None = Field(default=None, max_length=MAX_TEXT)
    model: str | None = Field(default=None, max_length=MAX_TEXT)
    provider: str | None = Field(default=None, max_length=MAX_TEXT)
    trace_id: str | None = Field(default=None, max_length=MAX_TEXT)
    start: Instant | None = None
    end: Instant | None = None
    group_by: Annotated[tuple[GroupKey, ...], AfterValidator(distinct)] = Field(
        default=(), max_length=6
    )
    cursor: str | None = Field(default=None, max_length=4096)
    limit: int = Field(default=100, ge=1, le=MAX_PAGE)

    def ranged(self, now: datetime) -> UsageFilter:
        """Returns the filter with a range; without one it is the 24 hours before `now`.

        Raises:
            InvalidRequest: `start` is not before `end`, or the range is over 400 days.
        """
        end = self.end or now
        start = self.start or max(end, EARLIEST) - DEFAULT_RANGE
        if start >= end:
            raise InvalidRequest("start must be before end")
        if end - start > MAX_RANGE:
            raise InvalidRequest(
                f"the range from start to end is longer than {MAX_RANGE.days} days: "
                "ask for less at once"
            )
        return self.model_copy(update={"start": start, "end": end})


class UsageRow(Frozen):
    """Sums over the calls that share the group keys; keys that were not asked for are None.

    `model` is the logical model, `day` a day in UTC, `trace_id` empty for calls without one. Tokens
    and cost are those of every attempt, accounted to the provider that was called; a call is
    counted where it ended. `cost_usd` sums the attempts that have a price and is None where none
    has; `unpriced` counts attempts that took tokens and have no price.
    """

    agent_id: str | None = None
    microdao_id: str | None = None
    model: str | None = None
    provider: str | None = None
    day: date | None = None
    trace_id: str | None = None
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


class UsagePage(Frozen):
    """Rows in the order of their group keys, and their range.

    `next_cursor` is None on the last page.
    """

    rows: list[UsageRow]
    start: datetime
    end: datetime
    next_cursor: str | None = None


class UsageSink(Protocol):
    """Where calls are recorded. Both methods return at once."""

    def begin(self, record: UsageRecord) -> int:
        """Keeps the record of a call that begins, to be written if this process dies.

        Returns its ticket, for which there is room to record the end.

        Raises:
            Overloaded: there is no room.
        """

    def record(self, record: UsageRecord, ticket: int) -> None:
        """Takes the record of the call that has ended, in place of what `begin` kept of it."""


class UsageJournal(UsageSink, Protocol):
    """Keeps records, as JSON texts, until they are in the ledger.

    They survive a killed process: another one adopts them.
    """

    @property
    def pending(self) -> int:
        """The number of records that are not delivered, adopted ones included."""

    async def open(self) -> None:
        """Must be called first. Raises ConfigurationError: nothing can be kept."""

    async def drain(self, rows: int, write: Callable[[list[bytes]], Awaitable[None]]) -> None:
        """Passes records in batches of up to `rows` to `write`; a batch stays if that raises."""

    async def adopt(self) -> None:
        """Takes over records of dead processes: of ended calls, then what `begin` kept."""

    async def close(self) -> None:
        """Leaves what is not delivered to the next process."""


class UsageLedger(Protocol):
    """Writes records, each once: repeating a record changes nothing."""

    async def write(self, records: list[bytes]) -> list[bytes]:
        """Writes records given as JSON texts; returns those that are in the ledger now.

        Raises:
            DatabaseUnavailable, DeadlineExceeded: the ledger cannot be written now.
        """


class UsageOutbox(Protocol):
    """Calls whose message is still to be published. Methods raise DatabaseUnavailable."""

    async def add(self, ids: Sequence[str]) -> None:
        """Adds calls by their ids; one that is there already stays."""

    def take(self, most: int) -> AbstractAsyncContextManager[list[Mapping[str, Any]]]:
        """Takes calls, oldest first, for `usage_message`; they stay when the block raises."""

    async def purge(self, days: int, most: int) -> int:
        """Deletes up to `most` calls that were added more than `days` ago; returns how many."""


class UsagePublisher(Protocol):
    """Publishes the message `usage.llm`."""

    def check(self) -> None:
        """Raises Unavailable while nothing can be published."""

    async def publish(self, calls: Iterable[Mapping[str, Any]]) -> None:
        """Returns once all messages have arrived. Raises Unavailable: some or none have."""


class UsageReader(Protocol):
    """Where sums are read."""

    async def query(self, usage_filter: UsageFilter) -> UsagePage:
        """Sums up the ledger. The filter's `start` and `end` are set.

        Raises:
            InvalidRequest: a cursor that belongs to another query.
            DatabaseUnavailable: the ledger cannot be read now.
        """
