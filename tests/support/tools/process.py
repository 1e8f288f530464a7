"""One replica of Toolcore as a process that tests kill: PostgreSQL, HTTP executor, uvicorn."""

from __future__ import annotations

import asyncio
import json
import socket
import sys

import uvicorn

from backends.tools.ledger import LedgerLimits
from configs.tools import ConfiguredSecrets
from executors.http.executor import HttpToolExecutor
from tests.support.events import RecordedEvents
from tests.support.tools.toolcore import PREFIX, asgi, replica
from tests.support.uvicorn_server import rooted


async def main(database_url, port, tools):
    executor = HttpToolExecutor(
        ConfiguredSecrets({}, lambda _: None, "http://127.0.0.1:1"), RecordedEvents()
    )
    limits = LedgerLimits(lease_s=4.0, grace_s=1.0)
    async with replica(database_url, *tools, executors={"http": executor}, limits=limits) as here:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        app = rooted(asgi(here.toolcore, here.events), PREFIX)
        await uvicorn.Server(
            uvicorn.Config(app, log_level="error", lifespan="off", access_log=False)
        ).serve(sockets=[listener])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])))
