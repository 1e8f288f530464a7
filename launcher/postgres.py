"""PostgreSQL with pgvector as a child process, from the binaries inside the wheel.

Every start ensures the database, its extension and two roles:

    daarion_owner    owns the database and its tables; runs the migrations
    daarion_service  used by the services: no superuser, bound by row security, owns nothing

The superuser is used for this set-up alone.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql

from launcher.cluster import SUPERUSER, Cluster
from launcher.datadir import DataDir
from launcher.errors import StartRefused
from launcher.ports import LOOPBACK, sticky_port
from launcher.process import ChildProcess, Command

OWNER = "daarion_owner"
SERVICE = "daarion_service"
DATABASE = "daarion"
_PLAIN = sql.SQL("LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB NOREPLICATION")
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
_SECRETS = {
    OWNER: "postgres_owner",
    SERVICE: "postgres_service",
    SUPERUSER: "postgres_superuser",
}


@dataclass(frozen=True)
class DatabaseUrls:
    """URLs of one database: for its owner (migrations), the service role, the superuser."""

    owner: str
    service: str
    superuser: str


class PostgresServer(ChildProcess):
    """A real PostgreSQL in `data_dir`, owned by this process.

    The cluster is `data_dir/postgres`, generated passwords are in `data_dir/secrets`, the log in
    `data_dir/logs`. It listens on 127.0.0.1, on the previous port while that is free. In tests::

        async with PostgresServer(tmp_path, durable=False) as server:   # about 1.5 s
            server.urls.owner      # runs migrations
            server.urls.service    # neither superuser nor able to bypass row security
            await server.create_database("another")   # the same three URLs for a further database

    `port` and `urls` are known once `start` was called. `start` returns when the product's database
    and roles are usable; after the process died it restarts the server under the same URLs.

    Args:
        data_dir: an existing or new folder; only one server at a time may use it.
        durable: False trades crash safety for speed (tests).
    """

    stop_signal = signal.SIGINT  # fast: rolls back open transactions
    stop_timeout_s = 30.0
    kill_signal = signal.SIGQUIT  # immediate: the next start recovers

    def __init__(self, data_dir: Path, *, durable: bool = True) -> None:
        self._data_dir = DataDir(data_dir.absolute())
        super().__init__("PostgreSQL", self._data_dir.log("postgres"))
        self.port = 0
        self._cluster = Cluster(self._data_dir.postgres, durable=durable)
        self._passwords: dict[str, str] = {}

    @property
    def urls(self) -> DatabaseUrls:
        """URLs of the product's database."""
        return self.urls_of(DATABASE)

    def urls_of(self, database: str) -> DatabaseUrls:
        return DatabaseUrls(
            *(url(role, self._passwords[role], self.port, database) for role in _SECRETS)
        )

    async def prepare(self) -> Command:
        """Creates the cluster if it is new.

        Raises:
            StartRefused: the folder is of another version.
            ServiceFailed: the cluster cannot be created.
        """
        data_dir = self._data_dir
        await asyncio.to_thread(data_dir.prepare)
        self._passwords = {role: data_dir.secret(name) for role, name in _SECRETS.items()}
        await self._cluster.prepare(self._passwords[SUPERUSER])
        # A restart keeps the URLs that clients have.
        self.port = self.port or await asyncio.to_thread(sticky_port, data_dir.ports, "postgres")
        settings = _SETTINGS | {"port": str(self.port)}
        settings |= {} if self._cluster.durable else _EPHEMERAL
        options = [part for item in settings.items() for part in ("-c", "=".join(item))]
        return self._cluster.command("postgres", "-D", str(self._cluster.path), *options)

    async def until_ready(self) -> None:
        await self.poll(self._accepts, _READY_TIMEOUT_S)
        await ensure_roles(self.urls_of("postgres").superuser, self._passwords)
        await self.create_database(DATABASE)

    async def create_database(self, name: str) -> DatabaseUrls:
        """Creates a database with the same owner, rights and extension unless it exists."""
        urls = self.urls_of(name)
        await ensure_database(self.urls_of("postgres").superuser, urls.superuser, name)
        return urls

    async def _accepts(self) -> bool:
        """Whether the superuser can log in. Raises StartRefused if his password is lost."""
        try:
            connection = await psycopg.AsyncConnection.connect(
                self.urls_of("postgres").superuser, connect_timeout=5
            )
        except psycopg.OperationalError as error:
            # psycopg gives no SQLSTATE for a refused login, only the server's text.
            if "password authentication failed" in str(error):
                raise StartRefused(
                    f"the password in {self._data_dir.secrets} is not the one of the cluster in "
                    f"{self._cluster.path}: put the old file back, or move the cluster away to "
                    "start with an empty one"
                ) from error
            return False
        await connection.close()
        return True


def url(user: str, password: str, port: int, database: str) -> str:
    """Returns a libpq URL on loopback; by SCRAM the server proves that it knows the password."""
    login = f"{quote(user)}:{quote(password, safe='')}"
    return f"postgresql://{login}@127.0.0.1:{port}/{quote(database)}?require_auth=scram-sha-256"


async def ensure_roles(superuser_url: str, passwords: Mapping[str, str]) -> None:
    """Creates both roles, or resets their passwords (by role) and rights."""
    async with await psycopg.AsyncConnection.connect(superuser_url, autocommit=True) as connection:
        for role in (OWNER, SERVICE):
            found = await (
                await connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role])
            ).fetchone()
            verb = sql.SQL("ALTER ROLE") if found else sql.SQL("CREATE ROLE")
            # The verifier is computed here: neither SQL text nor server log has the password.
            verifier = connection.pgconn.encrypt_password(
                passwords[role].encode(), role.encode(), b"scram-sha-256"
            ).decode()
            await connection.execute(
                sql.SQL("{} {} {} PASSWORD {}").format(
                    verb, sql.Identifier(role), _PLAIN, sql.Literal(verifier)
                )
            )


async def ensure_database(superuser_url: str, database_superuser_url: str, database: str) -> None:
    """Creates `database` with the extension `vector`; the owner and the service role may connect.

    Args:
        superuser_url: connects to any existing database.
        database_superuser_url: the superuser's URL of `database` itself.
        database: its name.
    """
    name = sql.Identifier(database)
    async with await psycopg.AsyncConnection.connect(superuser_url, autocommit=True) as connection:
        found = await (
            await connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [database])
        ).fetchone()
        if not found:
            await connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {}").format(name, sql.Identifier(OWNER))
            )
        await connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(name))
        await connection.execute(
            sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(name, sql.Identifier(SERVICE))
        )
    async with await psycopg.AsyncConnection.connect(
        database_superuser_url, autocommit=True
    ) as connection:
        await connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
