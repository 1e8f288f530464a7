"""A replica of the LLM proxy as a process that tests kill.

Arguments: the database's URL, the upstream's URL, the port.
"""

from __future__ import annotations

import asyncio
import sys

import uvicorn

from tests.support.llm.answers import llm_replica
from tests.support.llm.batches import CALM


async def main(database_url, base_url, port):
    async with llm_replica(database_url, base_url, **CALM) as replica:
        config = uvicorn.Config(
            replica.app, "127.0.0.1", port, log_level="error", lifespan="off", access_log=False
        )
        await uvicorn.Server(config).serve()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
