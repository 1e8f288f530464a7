"""The slot and the exchange that one call holds, and the end of both."""

from __future__ import annotations

import asyncio
import contextlib
import time

from anyio import CapacityLimiter

from common.http.errors import HttpError
from common.tasks import end_tasks, spawn
from providers.transport import HttpExchange

DRAIN_S = 0.05
"""How long the end of a finished stream's body is awaited, so that its connection can be reused."""
MAX_DRAINED_BYTES = 64 << 10


class HeldCall:
    """A slot among the provider's calls, and the exchange once there is one. `end` releases both,
    once.
    """

    __slots__ = ("_slot", "_slots", "exchange")

    def __init__(self, slots: CapacityLimiter, slot: object) -> None:
        self._slots: CapacityLimiter | None = slots
        self._slot = slot
        self.exchange: HttpExchange | None = None

    def end(self) -> None:
        """Releases slot and exchange."""
        if self._slots is None:
            return
        slots, self._slots = self._slots, None
        if self.exchange is not None:
            self.exchange.release()
        slots.release_on_behalf_of(self._slot)

    def handed_over(self) -> HeldCall:
        """Moves slot and exchange to a new owner, which the caller must end, and returns it."""
        assert self._slots is not None
        other = HeldCall(self._slots, self._slot)
        other.exchange, self._slots = self.exchange, None
        return other


class Drain:
    """Reads finished streams to the end of their bodies, after their callers were answered."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, held: HeldCall) -> None:
        """Takes over `held` and ends it within `DRAIN_S`."""
        spawn(_drain(held), self._tasks)

    async def close(self) -> None:
        """Stops."""
        await end_tasks(self._tasks)


async def _drain(held: HeldCall) -> None:
    assert held.exchange is not None
    held.exchange.expires_at = time.monotonic() + DRAIN_S
    try:
        with contextlib.suppress(HttpError):
            size = 0
            while (chunk := await held.exchange.read()) and size <= MAX_DRAINED_BYTES:
                size += len(chunk)
    finally:
        held.end()
