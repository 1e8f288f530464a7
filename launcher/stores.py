"""The stores as a library: what `make run`, `make services` and the tests start.

    async with PostgresServer(tmp_path, durable=False) as postgres, NatsServer(tmp_path) as nats:
        postgres.urls.owner, postgres.urls.service, nats.url

Both may share one folder. Nothing outlives the process that started them, not even after `kill -9` (Linux).
"""

from __future__ import annotations

from launcher.nats import NatsServer
from launcher.postgres import DatabaseUrls, PostgresServer

__all__ = ["DatabaseUrls", "NatsServer", "PostgresServer"]
