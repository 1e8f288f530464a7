"""What the agent pipeline needs: memory, tools, and a store of runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol
from uuid import UUID

from contracts.agents.runs import NewRun, Outcome, Run, RunQuery, RunView
from contracts.deadline import Deadline
from contracts.identity import Page, Tenant
from contracts.memory.api import Item
from contracts.tools.api import ToolCallRequest, ToolCallResult, ToolDefinition


class AgentMemory(Protocol):
    """The Memory Orchestrator. Raises leaves of the error tree."""

    async def recall(
        self, tenant: Tenant, channel_id: str | None, query: str, limit: int, deadline: Deadline
    ) -> list[Item]:
        """Returns the items nearest to `query`, best first."""

    async def remember(
        self,
        tenant: Tenant,
        channel_id: str | None,
        content: Mapping[str, str],
        deadline: Deadline,
        *,
        key: str,
        meta: Mapping[str, str],
    ) -> str:
        """Stores a conversation once per key; returns the memory's id."""


class AgentTools(Protocol):
    """Toolcore."""

    async def allowed(self, tenant: Tenant, deadline: Deadline) -> list[ToolDefinition]:
        """Returns the tools that this agent may call. Raises leaves of the error tree."""

    async def call(self, request: ToolCallRequest, deadline: Deadline) -> ToolCallResult:
        """Calls a tool. Failures are returned as results that are not ok, never raised."""


class RunStore(Protocol):
    """Stores runs. Raises DatabaseUnavailable while the database is away.

    A write to an unfinished run returns False when another replica has taken the run over.
    """

    async def accept(self, new: NewRun, lease_s: float) -> tuple[RunView, Run | None]:
        """Records a run and leases it; None for the Run when the trigger has a run already."""

    async def note(self, run: Run, lease_s: float) -> bool:
        """Writes the run's journal, steps, counts and state, and renews its lease."""

    async def finish(self, run: Run, outcome: Outcome) -> bool:
        """Ends the run and removes its journal and the question."""

    async def release(self, run: Run, delay_s: float) -> bool:
        """Ends the lease; any replica may take the run after `delay_s`."""

    async def lease(self, lease_s: float, at_most: int, agents: Sequence[str]) -> list[Run]:
        """Takes over runs with expired leases, of every microDAO: those of `agents`, and those of
        other agents once nobody has taken them for long.

        A run whose work had begun counts one more attempt. Unreadable runs are left out and
        reported as events.
        """

    async def renew(self, runs: Collection[UUID], lease_s: float) -> None:
        """Renews the leases of unfinished runs."""

    async def find(self, microdao_id: str, run_id: UUID) -> RunView | None:
        """Returns one run of this microDAO, None when there is no such run."""

    async def page(self, query: RunQuery) -> Page[RunView]:
        """Returns one page, without steps. Raises InvalidRequest for a foreign cursor."""

    async def purge(self, days: float) -> int:
        """Removes runs that ended more than `days` ago; returns how many."""
