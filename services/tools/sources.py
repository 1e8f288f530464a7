"""Keeps the tools of outside sources in the registry; a source that is away keeps its tools."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

from common.periodic import start_periodic
from common.retry import retry
from common.tasks import end_tasks
from contracts.errors import DaarionError
from contracts.events import EventLog, failure_event
from contracts.tools.api import ToolDefinition
from contracts.tools.registry import ToolStore
from services.tools.registry import Registry

RETRY_S = 10.0


class ToolSource(Protocol):
    """One outside source of tools."""

    refresh_s: float

    async def definitions(self) -> Sequence[ToolDefinition]:
        """Returns its tools, checked. Raises UpstreamError, Unavailable or DeadlineExceeded."""


class SourceKeeper:
    """One background task per source."""

    def __init__(self, store: ToolStore, registry: Registry, events: EventLog) -> None:
        self._store = store
        self._registry = registry
        self._events = events
        self._tasks: list[asyncio.Task[None]] = []

    async def watch(self, sources: Mapping[str, ToolSource]) -> None:
        """Watches these sources instead; disables the tools of all other sources."""
        await self.close()
        self._tasks = [
            start_periodic(
                partial(self._sync, name, source),
                source.refresh_s,
                failure_event(
                    self._events, "tools.source_away", defect="tools.source_defect", source=name
                ),
                name=f"tools:source:{name}",
                at_once=True,
                retry_s=(min(RETRY_S, source.refresh_s),) * 2,
            )
            for name, source in sources.items()
        ]
        retiring = retry(
            partial(self._retire, set(sources)),
            lambda error: isinstance(error, DaarionError),
            first_s=RETRY_S,
            longest_s=RETRY_S,
        )
        self._tasks.append(asyncio.create_task(retiring, name="tools:sources"))

    async def close(self) -> None:
        """Stops watching."""
        await end_tasks(self._tasks)
        self._tasks = []

    async def _sync(self, name: str, source: ToolSource) -> None:
        changes = await self._store.sync(await source.definitions(), "source", name)
        if changes:
            self._events.emit("tools.source_synced", source=name, changes=changes)
            await self._registry.refresh()

    async def _retire(self, known: set[str]) -> None:
        """Disables the tools of sources that the configuration no longer names."""
        await self._registry.refresh()
        brought = {
            tool.registered.source
            for tool in self._registry.tools()
            if tool.registered.origin == "source"
        }
        for name in brought - known:
            if name is not None:
                await self._store.sync([], "source", name)
