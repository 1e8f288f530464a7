"""Keeps the tools of outside sources in the registry; a source that is away keeps its tools."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Protocol

from common.tasks import end_tasks
from contracts.errors import DaarionError
from contracts.events import EventLog
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
            asyncio.create_task(self._keep(name, source), name=f"tools:source:{name}")
            for name, source in sources.items()
        ]
        self._tasks.append(asyncio.create_task(self._retire(set(sources)), name="tools:sources"))

    async def close(self) -> None:
        """Stops watching."""
        await end_tasks(self._tasks)
        self._tasks = []

    async def _keep(self, name: str, source: ToolSource) -> None:
        while True:
            try:
                changes = await self._store.sync(await source.definitions(), "source", name)
                if changes:
                    self._events.emit("tools.source_synced", source=name, changes=changes)
                    await self._registry.refresh()
            except DaarionError as error:
                self._events.emit("tools.source_away", source=name, error=error.type)
                await asyncio.sleep(min(RETRY_S, source.refresh_s))
            except Exception as error:  # noqa: BLE001  # must not end the loop
                self._events.emit(
                    "tools.source_defect", source=name, error=type(error).__name__, exc_info=error
                )
                await asyncio.sleep(min(RETRY_S, source.refresh_s))
            else:
                await asyncio.sleep(source.refresh_s)

    async def _retire(self, known: set[str]) -> None:
        """Disables the tools of sources that the configuration no longer names."""
        while True:
            with contextlib.suppress(DaarionError):
                await self._registry.refresh()
                brought = {
                    tool.registered.source
                    for tool in self._registry.tools()
                    if tool.registered.origin == "source"
                }
                for name in brought - known:
                    if name is not None:
                        await self._store.sync([], "source", name)
                return
            await asyncio.sleep(RETRY_S)
