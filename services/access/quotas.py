"""Storage quotas, checked against counts that are a few seconds old."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from cachetools import LRUCache

from contracts.access.settings import QuotaSettings, StoredKind
from contracts.errors import OverLimit
from services.access.directory import Directory

COUNT_S = 10.0
COUNTING_SHARE = 20
MAX_REMEMBERED = 10_000


class StoredCounts(Protocol):
    """Counts what a microDAO stores."""

    async def stored(
        self, kind: Literal["memories", "messages"], microdao_id: str, at_most: int
    ) -> int:
        """Returns the number, or `at_most` where there are more."""


@dataclass
class _Counted:
    """How much is stored, counted up to `limit`, and until when that counts."""

    stored: int = 0
    limit: int = -1
    until: float = 0.0
    counting: asyncio.Lock = field(default_factory=asyncio.Lock)


class Quotas:
    """Says what is over a quota.

    A microDAO with a quota is counted at most every `COUNT_S` seconds, and for a twentieth of the
    time where counting is slow. In between a replica adds what it has stored itself, so a quota is
    exceeded at most by what other replicas store meanwhile, and by the calls under way.
    """

    def __init__(
        self,
        directory: Directory,
        counts: StoredCounts,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._counts = counts
        self._clock = clock
        self._counted: LRUCache[tuple[str, str], _Counted] = LRUCache(MAX_REMEMBERED)

    def limit(self, kind: StoredKind, microdao_id: str) -> int | None:
        """Returns how many the microDAO may store; None is unlimited."""
        settings = self._directory.section("quotas", QuotaSettings) or QuotaSettings()
        return settings.limit(kind, microdao_id)

    async def refusal(
        self, kind: Literal["memories", "messages"], microdao_id: str, adding: int = 1
    ) -> OverLimit | None:
        """Returns why the microDAO may not store that many more, or None."""
        limit = self.limit(kind, microdao_id)
        if limit is None:
            return None
        known = self._counted.setdefault((kind, microdao_id), _Counted())
        async with known.counting:
            began = self._clock()
            if known.until <= began or known.limit < limit:
                known.stored = await self._counts.stored(kind, microdao_id, limit)
                known.limit = limit
                ended = self._clock()
                known.until = ended + max(COUNT_S, COUNTING_SHARE * (ended - began))
        if known.stored + adding > limit:
            return OverLimit(
                f"`{microdao_id}` may store {limit} {kind}: remove some, or raise `quotas` in "
                "access.yaml; what was removed counts within seconds",
                details={"limit": f"microdao.{kind}", "subject": microdao_id, "amount": limit},
            )
        return None

    def added(
        self, kind: Literal["memories", "messages"], microdao_id: str, number: int = 1
    ) -> None:
        """Counts what was stored: new ones only, neither duplicates nor refused ones."""
        if (known := self._counted.get((kind, microdao_id))) is not None:
            known.stored += number
