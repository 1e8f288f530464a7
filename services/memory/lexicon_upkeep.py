"""When the lexical index is merged, swept and rebuilt."""

from __future__ import annotations

import time

from contracts.events import EventLog
from contracts.memory.background import LexiconStore

MERGE_ABOVE = 256
"""Unmerged chunks of an area; a search reads the terms of all of them."""
SWEEP_ABOVE = 1_000
SWEEP_ALL_EVERY_S = 86_400.0
"""However few chunks of an area were deleted, their terms leave the postings within a day."""


class LexiconUpkeep:
    """Implements Upkeep."""

    name = "lexicon"

    def __init__(self, store: LexiconStore, events: EventLog, interval_s: float = 1.0) -> None:
        self._store = store
        self._events = events
        self._swept_all_at: float | None = None
        self.interval_s = interval_s

    async def run(self) -> None:
        """Rebuilds, merges and sweeps the areas that are due.

        Once a day, and at the start, every area with a deleted chunk is due.
        """
        now = time.monotonic()
        sweep_all = self._swept_all_at is None or now - self._swept_all_at > SWEEP_ALL_EVERY_S
        sweep_above = 0 if sweep_all else SWEEP_ABOVE
        due = await self._store.due(unmerged=MERGE_ABOVE, removed=sweep_above)
        for work in due:
            area = work.area
            if work.rebuild and (chunks := await self._store.rebuild(area)) is not None:
                self._events.emit("memory.lexicon_rebuilt", **area.identity, chunks=chunks)
            await self._store.merge(area)
            if work.removed > sweep_above:
                await self._store.sweep(area)
                self._events.emit("memory.postings_swept", **area.identity)
        # The store returns a bounded number of areas: there may be more with deleted chunks.
        if sweep_all and not any(work.removed for work in due):
            self._swept_all_at = now
