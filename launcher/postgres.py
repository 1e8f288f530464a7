"""PostgreSQL with pgvector as a child process, from the binaries inside the wheel."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from launcher import logs
from launcher.cluster import SUPERUSER, Cluster
from launcher.datadir import DataDir
from launcher.errors import ServiceFailed, StartRefused
from launcher.ports import LOOPBACK, StickyPorts
from launcher.process import ChildProcess
from launcher.roles import DATABASE, OWNER, SERVICE, Credentials, ensure_database, ensure_roles, url

_READY_TIMEOUT_S = 60.0  # crash recovery replays the log first
_SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "max_connections": "100",
    "shared_buffers": "512MB",
    "max_wal_size": "512MB",
    "password_encryption": "scram-sha-256",
    "logging_collector": "off",  # the launcher bounds the log file
    "log_min_messages": "warning",
    "log_min_error_statement": "panic",  # a statement may hold what users wrote
    "log_line_prefix": "%m [%p] %u@%d ",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
_EPHEMERAL = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@dataclass(frozen=True)
class DatabaseUrls:
    """URLs of one database: for its owner (migrations), the service role, the superuser."""

    owner: str
    service: str
    superuser: str


class PostgresServer:
    """A real PostgreSQL in `data_dir`, owned by this process.

    The cluster is `data_dir/postgres`, generated passwords are in `data_dir/secrets`, the log in
    `data_dir/logs`. It listens on 127.0.0.1, on the previous port while that is free. In tests::

        async with PostgresServer(tmp_path, durable=False) as server:   # about 1.5 s
            server.urls.owner      # runs migrations
            server.urls.service    # neither superuser nor able to bypass row security
            await server.create_database("another")   # the same three URLs for a further database

    `start` after the process died restarts the server under the same URLs.

    Args:
        data_dir: an existing or new folder; only one server at a time may use it.
        durable: False trades crash safety for speed (tests).
    """

    name = "PostgreSQL"

    def __init__(self, data_dir: Path, *, durable: bool = True) -> None:
        self._data_dir = DataDir(data_dir.absolute())
        self._cluster = Cluster(self._data_dir.postgres, durable=durable)
        self._child: ChildProcess | None = None
        self._port: int | None = None
        self._credentials: Credentials | None = None

    @property
    def port(self) -> int:
        """The port; known once `start` was called."""
        assert self._port is not None, "start() comes first"
        return self._port

    @property
    def urls(self) -> DatabaseUrls:
        """URLs of the product's database; known once `start` was called."""
        return self.urls_of(DATABASE)

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    def urls_of(self, database: str) -> DatabaseUrls:
        assert self._credentials is not None, "start() comes first"
        return DatabaseUrls(
            owner=url(OWNER, self._credentials.owner, self.port, database),
            service=url(SERVICE, self._credentials.service, self.port, database),
            superuser=url(SUPERUSER, self._credentials.superuser, self.port, database),
        )

    async def start(self) -> None:
        """Starts the server; returns when the product's database and roles are usable.

        Raises:
            StartRefused: the folder is of another version, or its superuser password is lost.
            ServiceFailed: the server did not start; the message has the last line of its log.
        """
        await asyncio.to_thread(self._data_dir.prepare)
        self._credentials = await asyncio.to_thread(self._read_credentials)
        await self._cluster.prepare(self._credentials.superuser)
        if self._port is None:  # a restart keeps the URLs that clients have
            self._port = await asyncio.to_thread(StickyPorts(self._data_dir.ports).take, "postgres")
        self._child = ChildProcess(
            self.name,
            self._cluster.command(
                "postgres", "-D", str(self._cluster.path), *self._options(self._port)
            ),
            log_file=self._data_dir.log("postgres"),
            stop_signal=signal.SIGINT,  # fast: rolls back open transactions
            stop_timeout_s=30.0,
            kill_signal=signal.SIGQUIT,  # immediate: the next start recovers
        )
        await self._child.start()
        try:
            await self._wait_until_accepting()
            await ensure_roles(self.urls_of("postgres").superuser, self._credentials)
            await self.create_database(DATABASE)
        except BaseException:
            await self._child.stop()
            raise

    async def create_database(self, name: str) -> DatabaseUrls:
        """Creates a database with the same owner, rights and extension unless it exists."""
        urls = self.urls_of(name)
        await ensure_database(self.urls_of("postgres").superuser, urls.superuser, name)
        return urls

    async def wait(self) -> int:
        return await self._child.wait() if self._child is not None else 0

    async def stop(self, stop_now: asyncio.Event | None = None) -> None:
        """Shuts down fast; immediately after 30 s, or when `stop_now` is set."""
        if self._child is not None:
            await self._child.stop(stop_now)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    def _options(self, port: int) -> list[str]:
        settings = _SETTINGS | {"port": str(port)} | ({} if self._cluster.durable else _EPHEMERAL)
        return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]

    def _read_credentials(self) -> Credentials:
        secret = self._data_dir.secret
        return Credentials(
            secret("postgres_superuser"), secret("postgres_owner"), secret("postgres_service")
        )

    async def _wait_until_accepting(self) -> None:
        """Waits until the superuser can log in."""
        assert self._child is not None
        deadline = asyncio.get_running_loop().time() + _READY_TIMEOUT_S
        while asyncio.get_running_loop().time() < deadline:
            try:
                connection = await psycopg.AsyncConnection.connect(
                    self.urls_of("postgres").superuser, connect_timeout=5
                )
            except psycopg.OperationalError as error:
                self._refuse_lost_password(error)
            else:
                await connection.close()
                return
            if not self._child.running:
                break
            await asyncio.sleep(0.05)
        reason = await asyncio.to_thread(logs.last_line, self._child.log_file)
        raise ServiceFailed(f"PostgreSQL did not start: {reason}")

    def _refuse_lost_password(self, error: psycopg.OperationalError) -> None:
        # psycopg gives no SQLSTATE for a refused login, only the server's text.
        if "password authentication failed" in str(error):
            raise StartRefused(
                f"the password in {self._data_dir.secrets} is not the one of the cluster in "
                f"{self._cluster.path}: put the old file back, or move the cluster away to start "
                "with an empty one"
            ) from error
