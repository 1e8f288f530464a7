"""Erasure of whole agents and channels, and its receipts."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import orjson

from backends.memory.areas import SHARED, background_transaction, tenant_transaction
from backends.memory.removal import remove_agent, remove_channel
from backends.postgres.pool import Database
from contracts.identity import Tenant, new_id
from contracts.memory.administration import EraseReceipt, EraseRequest
from contracts.memory.ports import Area

TIMEOUT_S = 120.0

AGENTS = "SELECT agent_id FROM memory_areas WHERE microdao_id = %(microdao_id)s"
RECEIPT = """
INSERT INTO memory_erasures (id, microdao_id, agent_id, channel_id, erased)
VALUES (%(id)s, %(microdao_id)s, %(agent_id)s, %(channel_id)s, %(erased)s) RETURNING at
"""


class ErasureTables:
    """Implements ErasureStore."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def agents(self, microdao_id: str) -> list[str]:
        async with background_transaction(self._database) as connection:
            rows = await (await connection.execute(AGENTS, {"microdao_id": microdao_id})).fetchall()
        return [row["agent_id"] for row in rows if row["agent_id"] != SHARED]

    async def erase_channel(self, tenant: Tenant, channel_id: str) -> dict[str, int]:
        async with tenant_transaction(self._database, tenant, timeout_s=TIMEOUT_S) as connection:
            return await remove_channel(connection, tenant, channel_id)

    async def erase_agent(self, area: Area) -> dict[str, int]:
        async with background_transaction(self._database, area, timeout_s=TIMEOUT_S) as connection:
            return await remove_agent(connection, area)

    async def receipt(self, request: EraseRequest, erased: Mapping[str, int]) -> EraseReceipt:
        values = {
            **request.model_dump(),
            "id": f"erasure-{new_id()}",
            "erased": orjson.dumps(erased).decode(),
        }
        async with self._database.transaction(microdao_id=request.microdao_id) as connection:
            row = await (await connection.execute(RECEIPT, values)).fetchone()
        at: datetime = row["at"] if row else datetime.now(UTC)
        return EraseReceipt(id=values["id"], **request.model_dump(), erased=dict(erased), at=at)
