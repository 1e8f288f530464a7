"""Erases whole microDAOs, agents and channels, with a receipt."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Protocol

import orjson

from backends.memory.areas import SHARED, Area, of_tenant, working
from backends.memory.removal import remove_agent, remove_channel
from backends.postgres.pool import Database
from contracts.identity import Tenant, new_id
from contracts.memory.api import EraseReceipt, EraseRequest

TIMEOUT_S = 120.0

AGENTS = "SELECT agent_id FROM memory_areas WHERE microdao_id = %(microdao_id)s"
RECEIPT = """
INSERT INTO memory_erasures (id, microdao_id, agent_id, channel_id, erased)
VALUES (%(id)s, %(microdao_id)s, %(agent_id)s, %(channel_id)s, %(erased)s) RETURNING at
"""


class KnowledgeRemoval(Protocol):
    """The knowledge base, as far as an erasure needs it."""

    async def forget(self, microdao_id: str) -> dict[str, int]:
        """Removes the folder and the documents of a microDAO; returns counts by kind."""


class Erasure:
    """Implements MemoryAdministration. `knowledge` removes the folder and the documents of a microDAO."""

    def __init__(self, database: Database, knowledge: KnowledgeRemoval) -> None:
        self._database = database
        self._knowledge = knowledge

    async def erase(self, request: EraseRequest) -> EraseReceipt:
        """See the port. Each agent goes in a transaction of its own; after a failure the same request goes on where it stopped."""
        erased: Counter[str] = Counter()
        if request.channel_id is not None and request.agent_id is not None:
            tenant = Tenant(microdao_id=request.microdao_id, agent_id=request.agent_id)
            async with of_tenant(self._database, tenant, timeout_s=TIMEOUT_S) as connection:
                erased.update(await remove_channel(connection, tenant, request.channel_id))
        elif request.agent_id is not None:
            erased.update(await self._agent(Area(request.microdao_id, request.agent_id)))
        else:
            for agent in await self._agents(request.microdao_id):
                erased.update(await self._agent(Area(request.microdao_id, agent)))
            erased.update(await self._knowledge.forget(request.microdao_id))
        return await self._receipt(request, dict(erased))

    async def _agent(self, area: Area) -> dict[str, int]:
        async with working(self._database, area, timeout_s=TIMEOUT_S) as connection:
            return await remove_agent(connection, area)

    async def _agents(self, microdao_id: str) -> list[str]:
        async with working(self._database) as connection:
            rows = await (await connection.execute(AGENTS, {"microdao_id": microdao_id})).fetchall()
        return [row["agent_id"] for row in rows if row["agent_id"] != SHARED]

    async def _receipt(self, request: EraseRequest, erased: dict[str, int]) -> EraseReceipt:
        values = {
            **request.model_dump(),
            "id": f"erasure-{new_id()}",
            "erased": orjson.dumps(erased).decode(),
        }
        async with self._database.transaction(microdao_id=request.microdao_id) as connection:
            row = await (await connection.execute(RECEIPT, values)).fetchone()
        at: datetime = row["at"] if row else datetime.now(UTC)
        return EraseReceipt(id=values["id"], **request.model_dump(), erased=erased, at=at)
