"""The registry in a replica: compiled tools in memory, refreshed within a second of a change, and
the sources that keep their tools in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from common.periodic import start_periodic
from common.retry import retry
from common.tasks import end_tasks
from contracts.errors import ConfigurationError, DaarionError, InvalidRequest, Unavailable
from contracts.events import EventLog, failure_event
from contracts.tools.api import ToolDefinition, tool_id_of
from contracts.tools.registry import RegisteredTool, ToolStore
from services.tools.schemas import CompiledSchema

MAX_TOOLS = 10_000
# Look-ups of unknown tools read the store at most this often.
MISS_INTERVAL_S = 0.1
RESERVED_IDS = frozenset({"approvals", "call", "calls", "health", "mcp", "results", "sources"})
RETRY_S = 10.0


@dataclass(frozen=True)
class Tool:
    """One version of a tool with its schemas compiled."""

    registered: RegisteredTool
    input: CompiledSchema = field(repr=False)
    output: CompiledSchema | None = field(repr=False)

    @property
    def definition(self) -> ToolDefinition:
        """What the operator wrote."""
        return self.registered.definition

    @property
    def object_output(self) -> dict[str, Any] | None:
        """The output schema if results are objects; MCP lists no other."""
        schema = self.definition.output_schema
        return schema if schema is not None and schema.get("type") == "object" else None

    @property
    def enabled(self) -> bool:
        """Whether it may be called and listed."""
        return self.registered.enabled


def compile_tool(registered: RegisteredTool) -> Tool:
    """Returns the tool with compiled schemas. Raises InvalidRequest for an invalid schema."""
    definition = registered.definition
    output = (
        None
        if definition.output_schema is None
        else CompiledSchema(definition.output_schema, subject="output_schema")
    )
    return Tool(registered, CompiledSchema(definition.input_schema, subject="input_schema"), output)


def check_definition(definition: ToolDefinition) -> None:
    """Refuses a definition that could never be served.

    Raises:
        InvalidRequest: a reserved id, an invalid schema, or one whose top level excludes objects.
    """
    if definition.id in RESERVED_IDS:
        raise InvalidRequest(f"`{definition.id}` is the name of a route: choose another id")
    compiled = CompiledSchema(definition.input_schema, subject="input_schema")
    violation = compiled.violation({})
    if (
        violation is not None
        and violation.path == "$"
        and definition.input_schema.get("type", "object") != "object"
    ):
        raise InvalidRequest("input_schema must describe an object of named arguments")
    if definition.output_schema is not None:
        CompiledSchema(definition.output_schema, subject="output_schema")


class Registry:
    """Serves look-ups from memory; a background task polls the store's revision."""

    def __init__(self, store: ToolStore, events: EventLog, *, interval_s: float = 1.0) -> None:
        self._store = store
        self._events = events
        self.interval_s = interval_s
        self._revision: int | None = None
        self._read_at = 0.0
        self._tools: dict[str, Tool] = {}
        self._task: asyncio.Task[None] | None = None
        self._refreshing = asyncio.Lock()

    async def start(self) -> None:
        """Loads the registry if the store answers, and begins to poll it."""
        with contextlib.suppress(DaarionError):
            await self.refresh()
        self._task = start_periodic(
            self._poll,
            lambda: self.interval_s,
            failure_event(self._events, None, defect="tools.upkeep_defect"),
            name="tools:registry",
        )

    async def close(self) -> None:
        """Stops polling."""
        if self._task is not None:
            await end_tasks([self._task])

    def get(self, tool_id: str) -> Tool | None:
        """Returns the current version by id or mapped name, enabled or not.

        Raises:
            Unavailable: the registry has not been read yet.
        """
        self.check_loaded()
        return self._tools.get(tool_id) or self._tools.get(tool_id_of(tool_id))

    async def find(self, tool_id: str) -> Tool | None:
        """Returns the same, reading the store first if memory holds no enabled tool of that id."""
        tool = self.get(tool_id)
        if (
            tool is None or not tool.enabled
        ) and time.monotonic() - self._read_at > MISS_INTERVAL_S:
            with contextlib.suppress(DaarionError):
                await self.refresh()
            tool = self.get(tool_id)
        return tool

    def tools(self) -> Sequence[Tool]:
        """Returns every enabled tool, by id. Raises Unavailable as `get` does."""
        self.check_loaded()
        return [tool for _, tool in sorted(self._tools.items()) if tool.enabled]

    def check_loaded(self) -> None:
        """Raises Unavailable until the registry has been read once."""
        if self._revision is None:
            raise Unavailable("the tool registry is not loaded yet: retry", retry_after_s=1)

    async def refresh(self) -> None:
        """Reads the store if it changed. Raises DatabaseUnavailable; memory then stays as it is."""
        async with self._refreshing:
            self._read_at = time.monotonic()
            if self._revision is not None and await self._store.revision() == self._revision:
                return
            revision, registered = await self._store.load()
            self._tools = self._compiled(registered[:MAX_TOOLS])
            self._revision = revision

    def _compiled(self, registered: Iterable[RegisteredTool]) -> dict[str, Tool]:
        tools = {}
        for entry in registered:
            tool_id, known = entry.definition.id, self._tools.get(entry.definition.id)
            if known is not None and known.registered == entry:
                tools[tool_id] = known
                continue
            try:
                tools[tool_id] = compile_tool(entry)
            except InvalidRequest as error:  # written by a version of this program with other rules
                self._events.emit(
                    "tools.uncompilable",
                    tool_id=tool_id,
                    version=entry.version,
                    reason=error.message,
                )
        return tools

    async def _poll(self) -> None:
        try:
            await self.refresh()
        except ConfigurationError as error:
            self._events.emit("tools.registry_refused", reason=error.message)


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
