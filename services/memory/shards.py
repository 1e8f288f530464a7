"""Gives large areas a shard of their own with an HNSW index, and moves their new rows there.

Stores never wait for it: new rows always arrive in shard 0. A shard is announced first; rows move
there only when every query has ended that may not know of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from contracts.events import EventLog
from contracts.memory.background import ShardStore
from contracts.memory.ports import Area

MOVE_AT_ONCE = 500
MARGIN_S = 2.0
"""Beyond a query's timeout: for its cancellation, and for the announcement's own transaction."""


@dataclass(frozen=True, slots=True)
class ShardSettings:
    """When an area gets a shard.

    Up to `exact_rows` an area is scanned exactly. Beyond, it has a shard, and up to `remainder`
    rows outside of it. There are at most `most` shards; areas that get none are still scanned.
    """

    exact_rows: int = 10_000
    remainder: int = 1_000
    most: int = 200


class ShardUpkeep:
    """Implements Upkeep. A query reads its areas first and ends within `query_timeout_s`."""

    name = "shards"

    def __init__(
        self,
        store: ShardStore,
        events: EventLog,
        settings: ShardSettings,
        *,
        query_timeout_s: float,
        interval_s: float = 5.0,
    ) -> None:
        self._store = store
        self._events = events
        self._settings = settings
        self.query_timeout_s = query_timeout_s
        self.interval_s = interval_s

    async def run(self) -> None:
        """Opens, fills and indexes the shards that are due."""
        due = await self._store.due(
            exact_rows=self._settings.exact_rows,
            remainder=self._settings.remainder,
            grace_s=self.query_timeout_s + MARGIN_S,
        )
        for area in due:
            await (self._fill(area) if area.shard else self._open(area))

    async def _open(self, area: Area) -> None:
        shard = await self._store.open(
            area, exact_rows=self._settings.exact_rows, most=self._settings.most
        )
        if shard:
            self._events.emit("memory.shard_opened", **area.identity, shard=shard)
        elif shard == 0:
            self._events.emit("memory.no_shard_left", **area.identity)

    async def _fill(self, area: Area) -> None:
        """Moves the area's embedded rows in small transactions, then makes sure of the index."""
        while await self._store.move(area, MOVE_AT_ONCE) == MOVE_AT_ONCE:
            pass
        await self._store.index(area)
