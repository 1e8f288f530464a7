"""One replica's Toolcore: its use cases over the ports, replaced when the configuration changes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from common.retry import retry
from common.tasks import end_tasks, spawn
from contracts.access.audit import Note
from contracts.access.policy import PolicyService
from contracts.errors import DaarionError
from contracts.events import EventLog, Publisher
from contracts.tools.api import ToolDefinition, ToolExecutor
from contracts.tools.ledger import ToolLedger
from contracts.tools.registry import ToolStore
from services.tools.admin import Audit, Resolve, ToolAdmin
from services.tools.calls import ToolCalls
from services.tools.catalog import Catalog
from services.tools.execution import ConcurrencySlots, ToolRunner
from services.tools.policy import Policy
from services.tools.recorder import ToolRecorder
from services.tools.registry import Registry, SourceKeeper, ToolSource

SYNC_RETRY_S = 1.0


@dataclass(frozen=True)
class ToolcoreConfiguration:
    """What a reload may replace.

    `definitions` are the file's tools, resolved; `executors` have the names that definitions use;
    `resolve` is for administrators' definitions; `sources` are outside sources of tools.
    """

    definitions: Sequence[ToolDefinition]
    executors: Mapping[str, ToolExecutor]
    policy: Policy
    resolve: Resolve
    sources: Mapping[str, ToolSource] = field(default_factory=dict)


class Toolcore:
    """The use cases that HTTP, NATS and MCP call."""

    def __init__(
        self,
        store: ToolStore,
        ledger: ToolLedger,
        usage: Publisher,
        events: EventLog,
        *,
        outside: PolicyService | None = None,
        refresh_s: float = 1.0,
        note: Note | None = None,
    ) -> None:
        """`outside` is asked about calls that the policy allows."""
        self._store = store
        self._ledger = ledger
        self._events = events
        self._outside = outside
        self.registry = Registry(store, events, interval_s=refresh_s)
        self.audit = Audit(ledger, events, note)
        self._recorder = ToolRecorder(ledger, usage, events, note=note)
        self._sources = SourceKeeper(store, self.registry, events)
        self._syncing: set[asyncio.Task[None]] = set()
        self._slots = ConcurrencySlots()
        self._calls: ToolCalls | None = None
        self._catalog: Catalog | None = None
        self._admin: ToolAdmin | None = None

    async def start(self) -> None:
        """Starts the background work."""
        await self.registry.start()
        self._recorder.start()

    async def configure(self, configuration: ToolcoreConfiguration) -> None:
        """Applies a configuration to later calls.

        Writes the file's tools to the registry, and retries that in the background while the
        database is away.
        """
        policy = configuration.policy
        runner = ToolRunner(configuration.executors, self._slots, self._events)
        self._calls = ToolCalls(
            self.registry,
            policy,
            self._ledger,
            self._recorder,
            runner=runner,
            events=self._events,
            outside=self._outside,
        )
        self._catalog = Catalog(self.registry, policy)
        self._admin = ToolAdmin(self._store, self.registry, configuration.resolve, self._events)
        await end_tasks(self._syncing)
        sync = partial(self._sync, configuration.definitions)
        try:
            await sync()
        except DaarionError:
            done = retry(
                sync,
                lambda error: isinstance(error, DaarionError),
                first_s=SYNC_RETRY_S,
                longest_s=SYNC_RETRY_S,
            )
            spawn(done, self._syncing)
        await self._sources.watch(configuration.sources)

    def calls(self) -> ToolCalls:
        """The use case of calls."""
        assert self._calls is not None, "configure() comes first"
        return self._calls

    def catalog(self) -> Catalog:
        """The use case of listings."""
        assert self._catalog is not None, "configure() comes first"
        return self._catalog

    def admin(self) -> ToolAdmin:
        """The use case of administrators."""
        assert self._admin is not None, "configure() comes first"
        return self._admin

    async def ready(self) -> None:
        """Raises Unavailable until the registry has been read once."""
        self.registry.check_loaded()

    async def close(self) -> None:
        """Stops the background work; records that are being written get a few seconds."""
        await end_tasks(self._syncing)
        await self._sources.close()
        await self.registry.close()
        await self._recorder.close()

    async def _sync(self, definitions: Sequence[ToolDefinition]) -> None:
        changes = await self._store.sync(definitions, "file")
        await self.registry.refresh()
        if changes:
            self._events.emit("tools.file_synced", changes=changes)
