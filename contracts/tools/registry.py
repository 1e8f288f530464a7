"""The tool registry: a registered tool and the port of its store."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from contracts.tools.api import ToolDefinition

Origin = Literal["file", "admin", "source"]


@dataclass(frozen=True)
class RegisteredTool:
    """A tool as the registry keeps it. `origin` tells who wrote this version: the file, an administrator, a source."""

    definition: ToolDefinition
    version: int
    enabled: bool
    origin: Origin
    updated_at: datetime
    source: str | None = None


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
