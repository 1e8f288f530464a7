"""The ledger of tool calls and the registry's store: rows and ports.

A call is `running` from its claim until it is settled, or `refused` when policy did not let it through. `call_id`
names one call within its microDAO; refused calls do not take the name.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal, Protocol
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from contracts.identity import new_id
from contracts.llm.usage import actor
from contracts.tools.api import Decision, Effect, ErrorKind, IsolationTier, ToolDefinition
from contracts.values import Instant

CallState = Literal["refused", "awaiting_approval", "running", "settled"]
Via = Literal["http", "nats", "mcp", "handle"]
Origin = Literal["file", "admin", "source"]
MAX_PAGE = 1_000


@dataclass(frozen=True)
class CallIntent:
    """What is known of a call before it runs.

    `args` and `context` are JSON texts, or None; after the call has ended only `keep_args` keeps the former. `approval_digest`
    stands for all that an approval covers, None where none is needed.
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
    id: UUID = field(default_factory=new_id)


@dataclass(frozen=True)
class Settlement:
    """How a call ended. `result` is the JSON text of the whole result; `shown` lets the audit show it."""

    ok: bool
    result: str | None = None
    result_items: int | None = None
    shown: bool = False
    error_kind: ErrorKind | None = None
    error: str | None = None
    retryable: bool = False
    effect_possible: bool = False
    tier: IsolationTier | None = None
    executor_attempts: int = 0
    duration_ms: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RecordedCall:
    """A call that holds its `call_id`. `expired` says that a running one's owner gave no sign of life for too long."""

    id: UUID
    call_id: str
    microdao_id: str
    tool_id: str
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
class AbandonedCall:
    """A call that was settled because its owner was gone."""

    id: UUID
    call_id: str
    microdao_id: str
    agent_id: str
    tool_id: str
    effect: Effect
    error_kind: ErrorKind


@dataclass(frozen=True)
class StoredResult:
    """A whole result as JSON text."""

    id: UUID
    body: str
    items: int | None
    expires_at: datetime


class CallFilter(BaseModel):
    """Which calls of one microDAO to list, newest first; `cursor` is a former page's `next_cursor`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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


class CallRow(BaseModel):
    """One call as the audit shows it; what is not known of it is left out. `args` and `result` are there only where the tool opted in.

    While a call waits for approval, administrators see its `args` and `context`: with tool and version, all that will run.
    """

    model_config = ConfigDict(frozen=True)

    id: UUID
    call_id: str
    agent_id: str
    microdao_id: str
    tool_id: str
    tool_version: int | None = None
    effect: Effect | None = None
    via: Via
    request_id: str
    args_hash: str
    rule: str
    state: CallState
    ok: bool | None = None
    error_kind: ErrorKind | None = None
    error: str | None = None
    retryable: bool | None = None
    effect_possible: bool | None = None
    tier: IsolationTier | None = None
    attempt: int
    attempts: int | None = None
    duration_ms: float | None = None
    result_bytes: int | None = None
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


@dataclass(frozen=True)
class RegisteredTool:
    """A tool as the registry keeps it. `origin` tells who wrote this version: the file, an administrator, a source."""

    definition: ToolDefinition
    version: int
    enabled: bool
    origin: Origin
    updated_at: datetime
    source: str | None = None


class ToolUsageEvent(BaseModel):
    """Published as `usage.tool` once per ended call; `id` is the ledger's, so that a consumer can tell repeats."""

    model_config = ConfigDict(frozen=True)

    id: UUID
    occurred_at: datetime
    request_id: str | None
    agent_id: str
    microdao_id: str
    channel_id: str | None
    tool_id: str
    tool_name: str
    tool_version: int | None
    call_id: str
    effect: Effect | None
    via: Via | None
    ok: bool
    error_kind: ErrorKind | None
    attempts: int
    duration_ms: float
    result_bytes: int | None

    def message(self) -> dict[str, Any]:
        """Returns what is sent: the fields that DAARION's usage engine demands, ours beside them."""
        return self.model_dump(mode="json") | {
            "event_id": str(self.id),
            "timestamp": self.occurred_at.isoformat(),
            **actor(self.agent_id),
            "success": self.ok,
            "latency_ms": round(self.duration_ms),
            "error": self.error_kind,
        }


class ToolUsage(Protocol):
    """Where ended calls are announced."""

    def publish(self, event: ToolUsageEvent) -> None:
        """Queues one event. Never blocks and never raises: the ledger is the truth, the event a notice."""


class ToolLedger(Protocol):
    """Where calls are recorded. Every method raises DatabaseUnavailable while it is away."""

    async def find(self, microdao_id: str, call_id: str) -> RecordedCall | None:
        """The call that holds this id."""

    async def claim(self, intent: CallIntent) -> RecordedCall | None:
        """Records that the call begins, durably. Returns None when it is ours, else the call that holds the id."""

    async def take_over(self, call: RecordedCall) -> bool:
        """Begins the next attempt of a call that may run (again); False when somebody else was faster."""

    async def settle(
        self, microdao_id: str, record: UUID, attempt: int, settlement: Settlement
    ) -> bool:
        """Ends a running attempt; False when the call was settled or taken over meanwhile."""

    async def record(self, intent: CallIntent, settlement: Settlement) -> UUID | None:
        """Records a finished `read`; returns its record's id, None when another success or another call holds the id already."""

    async def refuse(self, intent: CallIntent, decision: Decision) -> None:
        """Records a refusal."""

    async def await_approval(self, intent: CallIntent) -> RecordedCall | None:
        """Records that the call waits for approval. Returns the call that holds the id already, or None."""

    async def decide_approval(self, microdao_id: str, call_id: str, *, granted: bool) -> bool:
        """Grants or rejects a waiting call; False when none of that id waits undecided, or with a grant that has ended."""

    async def extend_leases(self, records: Sequence[UUID]) -> None:
        """Gives a sign of life for calls that this process runs."""

    async def settle_abandoned(self) -> Sequence[AbandonedCall]:
        """Ends calls whose owners are gone: a `write` as indeterminate, others as unavailable."""

    async def purge(self) -> int:
        """Removes what is older than it is kept; returns the number of rows."""

    async def list_calls(self, wanted: CallFilter, *, show_waiting_args: bool = False) -> CallPage:
        """A page of the audit."""

    async def read_result(self, microdao_id: str, result: UUID) -> StoredResult | None:
        """A whole result that is still kept."""


class ToolStore(Protocol):
    """Where the registry is kept. Every method raises DatabaseUnavailable while it is away."""

    async def revision(self) -> int:
        """A number that grows with every change."""

    async def load(self) -> tuple[int, Sequence[RegisteredTool]]:
        """The revision and the current version of every tool."""

    async def put(
        self, definition: ToolDefinition, origin: Origin, source: str | None = None
    ) -> RegisteredTool:
        """Adds a tool or its next version; an unchanged enabled one stays as it is."""

    async def disable(self, tool_id: str, origin: Origin) -> RegisteredTool | None:
        """Writes a disabled version; None when there is no such tool."""

    async def sync(
        self, definitions: Sequence[ToolDefinition], origin: Origin, source: str | None = None
    ) -> int:
        """Makes the tools of this origin (and source) equal `definitions`, sparing what an administrator wrote; returns the changes."""
