"""The tool registry: a registered tool and the port of its store."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from contracts.tools.api import ToolDefinition

Origin = Literal["file", "admin", "source"]


@dataclass(frozen=True)
class RegisteredTool:
    """A version of a tool. `origin` is who wrote it: the file, an administrator or a source."""

    definition: ToolDefinition
    version: int
    enabled: bool
    origin: Origin
    updated_at: datetime
    source: str | None = None


class ToolStore(Protocol):
    """Stores the registry. Every method raises DatabaseUnavailable while the database is away."""

    async def revision(self) -> int:
        """Returns a number that grows with every change."""

    async def load(self) -> tuple[int, Sequence[RegisteredTool]]:
        """Returns the revision and the current version of every tool."""

    async def put(
        self, definition: ToolDefinition, origin: Origin, source: str | None = None
    ) -> RegisteredTool:
        """Adds a tool or its next version, unless it is enabled and unchanged."""

    async def disable(self, tool_id: str, origin: Origin) -> RegisteredTool | None:
        """Writes a disabled version; None if there is no such tool."""

    async def sync(
        self, definitions: Sequence[ToolDefinition], origin: Origin, source: str | None = None
    ) -> int:
        """Makes the tools of this origin (and source) equal `definitions`.

        Versions that an administrator wrote stay. Returns the number of changes.
        """
