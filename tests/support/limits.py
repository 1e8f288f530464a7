"""The limit authority inside one process."""

import asyncio
import time

from services.llm_proxy.leases import LeaseBook


class InProcessAuthority:
    """The real book behind the port, with a call's delay."""

    def __init__(self):
        self.book = LeaseBook()
        self.calls = 0

    async def lease(self, key, limit, want, settled):
        self.calls += 1
        await asyncio.sleep(0.001)
        return self.book.lease(key, limit, want, time.monotonic(), settled)
