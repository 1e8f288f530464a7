"""The tool registry in PostgreSQL: current versions, history, and a revision that readers poll."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import psycopg
from psycopg.rows import DictRow
from pydantic import ValidationError

from backends.postgres.pool import Database
from contracts.events import EventLog
from contracts.tools.api import ToolDefinition
from contracts.tools.registry import Origin, RegisteredTool

Connection = psycopg.AsyncConnection[DictRow]

REVISION = "SELECT revision FROM tool_registry_revision"
LOCK = "SELECT revision FROM tool_registry_revision FOR UPDATE"
BUMP = "UPDATE tool_registry_revision SET revision = revision + 1"
CURRENT = """
SELECT tool_id, version, enabled, origin, source, definition::text AS definition, updated_at
FROM tools
"""
CURRENT_ONE = """
SELECT tool_id, version, enabled, origin, source, definition::text AS definition, updated_at
FROM tools WHERE tool_id = %(tool_id)s
"""
# What a synchronisation may change: the named tools, and all tools of its origin.
AFFECTED = """
SELECT tool_id, version, enabled, origin, source, definition::text AS definition, updated_at
FROM tools
WHERE tool_id = ANY(%(tool_ids)s)
    OR (origin = %(origin)s AND source IS NOT DISTINCT FROM %(source)s)
"""
# Every version is current and history: one statement writes both rows.
WRITE = """
WITH history AS (
    INSERT INTO tool_versions (tool_id, version, enabled, origin, source, definition)
    VALUES (%(tool_id)s, %(version)s, %(enabled)s, %(origin)s, %(source)s, %(definition)s)
)
INSERT INTO tools AS current (tool_id, version, enabled, origin, source, definition)
VALUES (%(tool_id)s, %(version)s, %(enabled)s, %(origin)s, %(source)s, %(definition)s)
ON CONFLICT (tool_id) DO UPDATE
SET version = excluded.version, enabled = excluded.enabled, origin = excluded.origin,
    source = excluded.source, definition = excluded.definition, updated_at = now()
RETURNING tool_id, version, enabled, origin, source, definition::text AS definition, updated_at
"""
WRITE_TIMEOUT_S = 5.0


class PostgresToolStore:
    """Implements the ToolStore port."""

    def __init__(self, database: Database, *, events: EventLog) -> None:
        self._database = database
        self._events = events

    async def revision(self) -> int:
        """Returns a number that grows with every change."""
        async with self._database.transaction() as connection:
            return await _revision(connection)

    async def load(self) -> tuple[int, Sequence[RegisteredTool]]:
        """Returns the revision and the current version of every tool, without unreadable rows."""
        async with self._database.transaction() as connection:
            revision = await _revision(connection)
            rows = await (await connection.execute(CURRENT)).fetchall()
        read = [self._readable(row) for row in rows]
        return revision, [tool for tool in read if tool is not None]

    async def put(
        self, definition: ToolDefinition, origin: Origin, source: str | None = None
    ) -> RegisteredTool:
        """Adds a tool or its next version, unless it is enabled and unchanged."""
        async with self._database.transaction(timeout_s=WRITE_TIMEOUT_S) as connection:
            await connection.execute(LOCK)
            current = await self._current(connection, definition.id)
            if (
                current is not None
                and current.enabled
                and current.definition == definition
                and current.origin == origin
            ):
                return current
            written = await _write(
                connection, definition, current, enabled=True, origin=origin, source=source
            )
            await connection.execute(BUMP)
            return written

    async def disable(self, tool_id: str, origin: Origin) -> RegisteredTool | None:
        """Writes a disabled version; None if there is no such tool."""
        async with self._database.transaction(timeout_s=WRITE_TIMEOUT_S) as connection:
            await connection.execute(LOCK)
            current = await self._current(connection, tool_id)
            if current is None or not current.enabled:
                return current
            written = await _write(
                connection,
                current.definition,
                current,
                enabled=False,
                origin=origin,
                source=current.source,
            )
            await connection.execute(BUMP)
            return written

    async def sync(
        self, definitions: Sequence[ToolDefinition], origin: Origin, source: str | None = None
    ) -> int:
        """Makes the tools of this origin and source equal `definitions`; returns the changes."""
        kept = {definition.id for definition in definitions}
        values = {"tool_ids": list(kept), "origin": origin, "source": source}
        async with self._database.transaction(timeout_s=WRITE_TIMEOUT_S) as connection:
            await connection.execute(LOCK)
            rows = await (await connection.execute(AFFECTED, values)).fetchall()
            known = {row["tool_id"]: self._readable(row) for row in rows}
            new = [one for one in definitions if self._is_change(one, known, origin, source)]
            gone = [
                tool
                for tool_id, tool in known.items()
                if tool is not None
                and tool.enabled
                and (tool.origin, tool.source) == (origin, source)
                and tool_id not in kept
            ]
            for definition in new:
                await _write(
                    connection,
                    definition,
                    known.get(definition.id),
                    enabled=True,
                    origin=origin,
                    source=source,
                )
            for tool in gone:
                await _write(
                    connection, tool.definition, tool, enabled=False, origin=origin, source=source
                )
            if new or gone:
                await connection.execute(BUMP)
        return len(new) + len(gone)

    def _is_change(
        self,
        definition: ToolDefinition,
        known: Mapping[str, RegisteredTool | None],
        origin: Origin,
        source: str | None,
    ) -> bool:
        """Whether a synchronisation writes this definition; what another origin wrote stays, and
        so does what another version of this program wrote in a form that is unreadable here.
        """
        if definition.id not in known:
            return True
        current = known[definition.id]
        if current is None:
            return False
        if (current.origin, current.source) != (origin, source):
            if current.origin != "admin":
                self._events.emit("tools.name_taken", tool_id=definition.id, by=current.origin)
            return False
        return not current.enabled or current.definition != definition

    async def _current(self, connection: Connection, tool_id: str) -> RegisteredTool | None:
        row = await (await connection.execute(CURRENT_ONE, {"tool_id": tool_id})).fetchone()
        return None if row is None else _tool(row)

    def _readable(self, row: DictRow) -> RegisteredTool | None:
        try:
            return _tool(row)
        except ValidationError:
            self._events.emit(
                "tools.unreadable_definition", tool_id=row["tool_id"], version=row["version"]
            )
            return None


async def _revision(connection: Connection) -> int:
    row = await (await connection.execute(REVISION)).fetchone()
    assert row is not None
    return int(row["revision"])


async def _write(
    connection: Connection,
    definition: ToolDefinition,
    current: RegisteredTool | None,
    *,
    enabled: bool,
    origin: Origin,
    source: str | None,
) -> RegisteredTool:
    values: dict[str, Any] = {
        "tool_id": definition.id,
        "version": current.version + 1 if current else 1,
        "enabled": enabled,
        "origin": origin,
        "source": source,
        "definition": orjson.dumps(definition.model_dump(mode="json")).decode(),
    }
    row = await (await connection.execute(WRITE, values)).fetchone()
    assert row is not None
    return _tool(row)


def _tool(row: DictRow) -> RegisteredTool:
    return RegisteredTool(
        definition=ToolDefinition.model_validate_json(row["definition"]),
        version=row["version"],
        enabled=row["enabled"],
        origin=row["origin"],
        updated_at=row["updated_at"],
        source=row["source"],
    )
