"""Checks that a NATS server answers: it greets every connection with an INFO line."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from contracts.errors import Unavailable

DEFAULT_PORT = 4222
MAX_GREETING_BYTES = 64 << 10


class NatsProbe:
    """Opens a connection for each probe; needs no credentials."""

    def __init__(self, url: str) -> None:
        """`url` as for a client; of several servers the first is probed."""
        parts = urlsplit(url.split(",", maxsplit=1)[0])
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or DEFAULT_PORT

    async def probe(self) -> None:
        """Raises Unavailable without a greeting."""
        try:
            reader, writer = await asyncio.open_connection(
                self._host, self._port, limit=MAX_GREETING_BYTES
            )
        except OSError:
            raise Unavailable("NATS cannot be reached") from None
        try:
            greeting = await reader.readline()
        except (OSError, ValueError):
            raise Unavailable("NATS does not answer") from None
        finally:
            writer.close()
        if not greeting.startswith(b"INFO "):
            raise Unavailable("the server at NATS_URL is not a NATS server")
