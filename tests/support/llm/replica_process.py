"""A replica of the LLM proxy that tests kill and start again."""

import asyncio
import contextlib
import signal
import socket
import sys

import httpx

from tests.support.llm.batches import (
    PATIENCE_S,
    REPOSITORY,
)


class ReplicaProcess:
    """One replica, started again on its port after each kill."""

    def __init__(self, database_url, upstream_url):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._argv = [
            sys.executable,
            "-m",
            "tests.support.llm.replica_main",
            database_url,
            upstream_url,
            str(self.port),
        ]
        self.process = None

    async def start(self):
        self.process = await asyncio.create_subprocess_exec(*self._argv, cwd=REPOSITORY)
        async with httpx.AsyncClient() as http, asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if (await http.get(f"{self.url}/health")).status_code == 200:
                        return
                assert self.process.returncode is None
                await asyncio.sleep(0.1)

    async def kill(self):
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
            await self.process.wait()
