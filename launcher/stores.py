"""The stores as a library, for `make run`, `make services` and the tests.

    async with (
        PostgresServer(tmp_path, durable=False) as postgres,
        NatsServer(tmp_path) as nats,
    ):
        postgres.urls.owner, postgres.urls.service, nats.url

Both may share one folder. Both end with the process that started them, even with `kill -9` (Linux).
"""

from __future__ import annotations

from launcher.nats import NatsServer
from launcher.postgres import DatabaseUrls, PostgresServer

__all__ = ["DatabaseUrls", "NatsServer", "PostgresServer"]
