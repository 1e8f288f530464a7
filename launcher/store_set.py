"""PostgreSQL, its migrations, and NATS: started here, or elsewhere at the operator's URLs."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from configs.environment import REPOSITORY, Environment
from launcher import logs, preflight, state
from launcher.console import Console
from launcher.datadir import DataDir
from launcher.errors import ServiceFailed
from launcher.nats import NatsServer
from launcher.ports import LOOPBACK
from launcher.postgres import PostgresServer
from launcher.process import Command, run_tool
from launcher.state import Part

_MIGRATION_TIMEOUT_S = 600.0


@dataclass
class StoreSet:
    """The two stores of one launcher; URLs are known after `start`."""

    environment: Environment
    data_dir: DataDir
    console: Console
    migrate_argv: Sequence[str]
    stop_now: asyncio.Event
    owned: list[PostgresServer | NatsServer] = field(default_factory=list)
    database_url: str = ""
    nats_url: str = ""

    async def check(self) -> None:
        """Checks the stores that run elsewhere.

        Raises:
            StartRefused: one of them does not answer.
        """
        if self.environment.database_url is not None:
            await preflight.check_database(self.environment.database_url)
        if self.environment.nats_url is not None:
            await preflight.check_nats(self.environment.nats_url)

    async def start(self, stack: AsyncExitStack) -> None:
        """Starts and migrates the stores that are not elsewhere; `stack` stops them.

        Raises:
            ServiceFailed: a store did not start, or the migrations failed.
        """
        owner_url = await self._start_database(stack)
        await self._migrate(owner_url)
        await self._start_nats(stack)
        await asyncio.to_thread(
            state.write_services,
            self.data_dir,
            database_url=self.database_url,
            database_owner_url=owner_url,
            nats_url=self.nats_url,
        )

    def parts(self) -> list[Part]:
        """Returns both stores for `status`, without passwords."""
        owned = {
            store.name: Part(store.name, store.pid, f"{LOOPBACK}:{store.port}")
            for store in self.owned
        }
        urls = {PostgresServer.name: self.database_url, NatsServer.name: self.nats_url}
        return [owned.get(name) or Part(name, None, _address(url)) for name, url in urls.items()]

    async def _start_database(self, stack: AsyncExitStack) -> str:
        if self.environment.database_url is not None:
            self.database_url = self.environment.database_url
            self.console.say(f"PostgreSQL: using DATABASE_URL ({_address(self.database_url)})")
            return self.environment.secret("DATABASE_OWNER_URL") or self.database_url
        server = PostgresServer(self.data_dir.root)
        await self._start(server, stack)
        self.database_url = server.urls.service
        return server.urls.owner

    async def _start_nats(self, stack: AsyncExitStack) -> None:
        if self.environment.nats_url is not None:
            self.nats_url = self.environment.nats_url
            self.console.say(f"NATS: using NATS_URL ({_address(self.nats_url)})")
            return
        server = NatsServer(self.data_dir.root)
        await self._start(server, stack)
        self.nats_url = server.url

    async def _start(self, server: PostgresServer | NatsServer, stack: AsyncExitStack) -> None:
        self.console.say(f"starting {server.name}")
        stack.push_async_callback(self._stop, server)
        await server.start()
        self.owned.append(server)
        self.console.say(f"{server.name} is ready on 127.0.0.1:{server.port}")

    async def _stop(self, server: PostgresServer | NatsServer) -> None:
        if server.pid is not None:
            self.console.say(f"stopping {server.name}")
        await server.stop(self.stop_now)

    async def _migrate(self, owner_url: str) -> None:
        began = time.monotonic()
        variables = dict(self.environment.variables) | {"DATABASE_URL": owner_url}
        status, output = await run_tool(
            Command(self.migrate_argv, variables, REPOSITORY), timeout_s=_MIGRATION_TIMEOUT_S
        )
        if status != 0:
            raise ServiceFailed(
                f"the migrations failed: {logs.last_line_of(output) or f'status {status}'}"
            )
        self.console.say(f"the database is up to date ({time.monotonic() - began:.1f} s)")


def _address(url: str) -> str:
    """Returns host and port of a URL, without user and password; of several hosts the last."""
    _, separator, place = url.partition("://")
    if not separator or "?" in place:  # libpq's own form, or a query: either may have a password
        return "as configured"
    return re.split(r"[/#]", place.rpartition("@")[2], maxsplit=1)[0]
