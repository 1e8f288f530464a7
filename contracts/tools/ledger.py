"""The ledger of tool calls: the records of a call in the order of its steps, and the port.

A call is `refused` by policy, or `awaiting_approval`, then `running`, then `settled`. `call_id`
names one call within its microDAO; a refused call does not take the name.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self
from uuid import UUID

from pydantic import BaseModel, Field

from contracts.identity import new_id
from contracts.llm.usage import actor
from contracts.shapes import Frozen, Strict
from contracts.tools.api import Decision, Effect, ErrorKind, IsolationTier, Outcome
from contracts.values import Instant, now_utc

CallState = Literal["refused", "awaiting_approval", "running", "settled"]
Via = Literal["http", "nats", "mcp", "handle"]
MAX_PAGE = 1_000


@dataclass(frozen=True)
class CallIntent:
    """A call before it runs. Field names are the ledger's columns.

    `fingerprint` is a digest of tool, agent and arguments. `args` and `context` are JSON texts, or
    None where they are not needed; after the end `args` is kept only if `keep_args`.
    `approval_digest` covers everything that an administrator approves, and is None for a call that
    needs no approval.
    """

    call_id: str
    microdao_id: str
    agent_id: str
    tool_id: str
    tool_version: int | None
    effect: Effect | None
    via: Via
    request_id: str
    fingerprint: bytes
    rule: str
    args: str | None = None
    keep_args: bool = False
    context: str | None = None
    approval_digest: bytes | None = None
    channel_id: str | None = None
    tool_name: str = ""
    trace_id: str | None = None
    id: UUID = field(default_factory=new_id)


@dataclass(frozen=True)
class Settlement(Outcome):
    """How a call ended: an outcome that was checked, as it is recorded and answered.

    `result` is what the caller sees: the whole, or a preview if `truncated`. `body` is the whole
    result's JSON text, `items` the length of an array. `audit_result` shows the result in the
    audit.
    """

    body: str | None = None
    items: int | None = None
    truncated: bool = False
    audit_result: bool = False

    @cached_property
    def result_bytes(self) -> int | None:
        """The size of the whole result's JSON text."""
        return None if self.body is None else len(self.body.encode())


@dataclass(frozen=True)
class RecordedCall:
    """The call that holds a `call_id`. `expired`: it is running, but its lease has run out.

    `settlement.result` is not read: `body` and `items` are there while the result is kept, until
    `result_kept_until`.
    """

    id: UUID
    microdao_id: str
    tool_version: int | None
    effect: Effect | None
    fingerprint: bytes
    state: CallState
    attempt: int
    expired: bool
    approval: Literal["granted", "rejected"] | None
    settlement: Settlement | None
    result_kept_until: datetime | None
    approval_digest: bytes | None = None
    approval_ended: bool = False


@dataclass(frozen=True)
class StoredResult:
    """A whole result as JSON text."""

    id: UUID
    body: str
    items: int | None
    expires_at: datetime


class CallFilter(Strict):
    """The calls of one microDAO to list, newest first; `cursor` is a former `next_cursor`."""

    microdao_id: str = Field(min_length=1, max_length=256)
    agent_id: str | None = Field(default=None, max_length=256)
    tool_id: str | None = Field(default=None, max_length=256)
    call_id: str | None = Field(default=None, max_length=256)
    state: CallState | None = None
    error_kind: ErrorKind | None = None
    start: Instant | None = None
    end: Instant | None = None
    cursor: UUID | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = 100


class CallSummary(Frozen):
    """What the audit and the usage event both say of a call."""

    id: UUID
    call_id: str
    agent_id: str
    microdao_id: str
    tool_id: str
    tool_version: int | None = None
    effect: Effect | None = None
    error_kind: ErrorKind | None = None
    result_bytes: int | None = None
    trace_id: str | None = None


class CallRow(CallSummary):
    """A call in the audit; unknown fields are absent.

    `args` and `result` are shown only where the tool opted in. While a call waits for approval,
    administrators see its `args` and `context`: with tool and version, all that will run.
    """

    via: Via
    request_id: str
    args_hash: str
    rule: str
    state: CallState
    ok: bool | None = None
    error: str | None = None
    retryable: bool | None = None
    effect_possible: bool | None = None
    tier: IsolationTier | None = None
    attempt: int
    attempts: int | None = None
    duration_ms: float | None = None
    started_at: datetime
    settled_at: datetime | None = None
    approval: str | None = None
    approved_until: datetime | None = None
    args: Any = None
    context: Any = None
    result: Any = None


class CallPage(BaseModel):
    """A page of the audit."""

    calls: list[CallRow]
    next_cursor: UUID | None = None


class ToolUsageEvent(CallSummary):
    """Published as `usage.tool` once per ended call; repeats have the same `id`, the ledger's."""

    subject: ClassVar[str] = "usage.tool"

    occurred_at: datetime = Field(default_factory=now_utc)
    request_id: str | None = None
    channel_id: str | None = None
    tool_name: str
    via: Via | None = None
    ok: bool
    attempts: int = 0
    duration_ms: float = 0

    @classmethod
    def of(cls, intent: CallIntent, settlement: Settlement) -> Self:
        """Returns the event of a call that ended."""
        ended = vars(settlement) | {"result_bytes": settlement.result_bytes}
        return cls.model_validate(ended | vars(intent))

    def message(self) -> dict[str, Any]:
        """Returns the message: the fields that DAARION's usage engine demands, beside our own."""
        return self.model_dump(mode="json") | {
            "event_id": str(self.id),
            "timestamp": self.occurred_at.isoformat(),
            **actor(self.agent_id),
            "success": self.ok,
            "latency_ms": round(self.duration_ms),
            "error": self.error_kind,
        }


class ToolLedger(Protocol):
    """Records calls. Every method raises DatabaseUnavailable while the database is away."""

    async def find(self, microdao_id: str, call_id: str) -> RecordedCall | None:
        """Returns the call that holds this id."""

    async def claim(self, intent: CallIntent) -> RecordedCall | None:
        """Records durably that the call begins. Returns None, or the call that holds the id."""

    async def await_approval(self, intent: CallIntent) -> RecordedCall | None:
        """Records that the call waits for approval. Returns None, or the call that holds the id."""

    async def refuse(self, intent: CallIntent, decision: Decision) -> None:
        """Records a refusal."""

    async def take_over(self, call: RecordedCall) -> bool:
        """Begins the next attempt of a call that may run; False if another process was faster."""

    async def settle(
        self, microdao_id: str, record: UUID, attempt: int, settlement: Settlement
    ) -> bool:
        """Ends a running attempt; False if the call was settled or taken over meanwhile."""

    async def record(self, intent: CallIntent, settlement: Settlement) -> UUID | None:
        """Records a finished `read`, which was not claimed. Returns its record's id.

        Returns None if the id is held by a success, or by another call.
        """

    async def decide_approval(self, microdao_id: str, call_id: str, *, granted: bool) -> bool:
        """Grants or rejects a waiting call; False if no call of that id waits for a decision.

        A call whose grant has expired waits for one, too.
        """

    async def renew(self, records: Collection[UUID]) -> None:
        """Renews the leases of calls that this process runs."""

    async def settle_abandoned(self) -> Sequence[ToolUsageEvent]:
        """Ends calls whose owners are gone, and returns their events.

        A `write` ends as indeterminate, others as unavailable.
        """

    async def purge(self) -> int:
        """Removes results, calls and replaced versions of tools that have expired; returns the
        number of rows.
        """

    async def list_calls(self, wanted: CallFilter, *, show_waiting_args: bool = False) -> CallPage:
        """Returns a page of the audit."""

    async def read_result(self, microdao_id: str, result: UUID) -> StoredResult | None:
        """Returns a whole result that is still kept."""
