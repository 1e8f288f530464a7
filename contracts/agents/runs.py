"""Runs: one answer to one triggering message, as it runs and as `GET /runs` shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel

from contracts.agents.invocations import AgentInvocation, Entrypoint, RunStatus
from contracts.identity import Identifier, PageQuery, Tenant
from contracts.shapes import Frozen

RunState = Literal["queued", "running", "posting", "done"]
StepName = Literal["models", "context", "memory", "tool_list", "llm", "tools", "reply", "store"]
Outcome = Literal["answered", "failed", "ignored", "undelivered", "indeterminate"]


class ToolUse(Frozen):
    """One tool call of a step. Toolcore's audit has arguments and results under `call_id`, as far
    as the tool's definition allows.
    """

    tool_id: str
    call_id: str | None = None
    executed: bool
    ok: bool
    error_kind: str | None = None
    duration_ms: float | None = None
    replayed: bool | None = None


class StepRecord(BaseModel):
    """One step of a run. It began `started_ms` after its attempt; model, token counts and dollars
    belong to steps of kind `llm`.
    """

    kind: StepName
    started_ms: float = 0.0
    duration_ms: float = 0.0
    attempt: int = 1
    ok: bool = True
    error: str | None = None
    model: str | None = None
    provider: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: Decimal | None = None
    finish_reason: str | None = None
    items: int | None = None
    calls: list[ToolUse] | None = None


class RunView(BaseModel):
    """One run as `GET /runs/{id}` shows it. `degraded` names the parts that were unavailable;
    `error` is an error's `type`.
    """

    id: UUID
    agent_id: str
    microdao_id: str
    channel_id: str | None = None
    trigger_id: str
    entrypoint: Entrypoint
    status: RunStatus
    attempt: int
    model: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tool_calls: int = 0
    memory_ids: list[str] = []
    degraded: list[str] = []
    error: str | None = None
    reply: str | None = None
    trace_id: str | None = None
    steps: list[StepRecord] = []
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None


class RunQuery(PageQuery):
    """Query of `GET /runs`: newest first, one page."""

    microdao_id: Identifier
    agent_id: Identifier | None = None
    channel_id: Identifier | None = None


@dataclass
class NewRun:
    """A run about to be recorded.

    `caller` are the claims of the principal that it runs for, None for the graph itself. `nonce`
    marks untrusted data in its prompts; only the model may see it. `traceparent` is the trace that
    all attempts continue, None if it began untraced.
    """

    id: UUID
    microdao_id: str
    agent_id: str
    channel_id: str | None
    trigger_id: str
    invocation: AgentInvocation
    caller: Mapping[str, Any] | None = field(repr=False)
    nonce: str = field(repr=False)
    traceparent: str | None


@dataclass
class Run(NewRun):
    """A run in progress.

    `journal` holds what another replica needs to resume it: the beginning and the model's answers.
    `claimed`: this replica took it over. `posting_since` is when its reply was first about to be
    posted; `posting_s` is how many seconds ago that was at the takeover.
    """

    state: RunState
    attempt: int
    created_at: datetime
    journal: list[dict[str, Any]] = field(default_factory=list, repr=False)
    steps: list[StepRecord] = field(default_factory=list)
    reply: str | None = field(default=None, repr=False)
    error: str | None = None
    memory_ids: list[str] = field(default_factory=list)
    degraded: list[str] = field(default_factory=list)
    model: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tool_calls: int = 0
    claimed: bool = False
    posting_since: datetime | None = None
    posting_s: float = 0.0

    @property
    def cost_usd(self) -> Decimal:
        """Dollars of the model's calls in all attempts, as far as their prices are known."""
        return sum((step.cost_usd or Decimal(0) for step in self.steps), Decimal(0))

    @property
    def tenant(self) -> Tenant:
        """The owner of the memory and tools that the run uses."""
        return Tenant(microdao_id=self.microdao_id, agent_id=self.agent_id)
