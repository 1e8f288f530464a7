"""Access to PostgreSQL: a bounded pool of connections that gives transactions.

Errors are those of `contracts/errors.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
from psycopg.abc import Query
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

from backends.postgres.connection import BoundedConnection, conninfo
from backends.postgres.errors import translate, without_values
from backends.postgres.roles import assume_service_role
from common.periodic import start_periodic
from common.tasks import end_tasks
from contracts.errors import ConfigurationError, DatabaseUnavailable
from contracts.events import SAMPLE_EVERY_S, EventLog, Sample, failure_event

T = TypeVar("T")

# The pool logs every failed attempt of every caller; we emit one event per outage.
logging.getLogger("psycopg.pool").setLevel(logging.ERROR)

# A caller learns within two seconds that PostgreSQL is away, so each single wait is shorter. The
# pool reconnects after 1.0 to 1.1 s: a caller that waits 1.3 s still gets the first connection to
# a server that came back.
ACQUIRE_TIMEOUT_S = 1.3
BEGIN_TIMEOUT_S = 1.5
ANSWER_MARGIN_S = 0.2
CLOSE_TIMEOUT_S = 2.0
PING_TIMEOUT_S = 1.0
# The pool retries for this long and then waits for the next caller. Its own back-off doubles
# without a limit and would keep the pool empty for minutes after the server came back.
RECONNECT_TIMEOUT_S = 1.5

SET_SESSION = """
SELECT set_config('statement_timeout', %(statement_ms)s, false),
       set_config('lock_timeout', %(lock_ms)s, false),
       set_config('idle_in_transaction_session_timeout', %(idle_ms)s, false),
       set_config('timezone', 'UTC', false)
"""


@dataclass(frozen=True)
class PoolLimits:
    """Bounds of a pool: connections, callers that may wait for one, and seconds."""

    min_size: int = 1
    max_size: int = 8
    max_waiting: int = 256
    statement_timeout_s: float = 1.5
    lock_timeout_s: float = 1.0
    idle_in_transaction_s: float = 10.0


class Database:
    """A pool of connections to one database, in a role that is subject to row security.

    Callers get `DatabaseUnavailable` within two seconds when PostgreSQL is away, refuses or hangs.
    The pool recovers with the first call after it came back.
    """

    def __init__(
        self, url: str, *, events: EventLog, limits: PoolLimits | None = None, name: str = "main"
    ) -> None:
        """Opens nothing yet. `name` tells a process's pools apart in metrics.

        Raises ConfigurationError when `url` is not a PostgreSQL URL.
        """
        self._events = events
        self._name = name
        self._sampling: list[asyncio.Task[None]] = []
        self._limits = limits or PoolLimits()
        self._refusal: ConfigurationError | None = None
        self._reachable = True
        self._connect_failure: str | None = None
        self._pool = AsyncConnectionPool(
            conninfo(url),
            connection_class=BoundedConnection,
            kwargs={
                "autocommit": True,
                "prepare_threshold": None,
                "row_factory": dict_row,
                "on_failure": self._note_connect_failure,
            },
            min_size=self._limits.min_size,
            max_size=self._limits.max_size,
            max_waiting=self._limits.max_waiting,
            timeout=ACQUIRE_TIMEOUT_S,
            reconnect_timeout=RECONNECT_TIMEOUT_S,
            configure=self._configure,
            open=False,
        )

    async def open(self) -> None:
        """Opens the pool. Returns within two seconds, also when PostgreSQL is away.

        Raises:
            ConfigurationError: the login has more rights than a service may have.
        """
        await self._pool.open()
        try:
            await self.ping()
        except DatabaseUnavailable:
            self._events.emit("database.not_ready")
        failed = failure_event(self._events, "metrics.not_sampled")
        self._sampling = [
            start_periodic(self._sample, SAMPLE_EVERY_S, failed, name="database:metrics")
        ]

    async def close(self) -> None:
        """Closes the pool; running transactions lose their connection when they end."""
        await end_tasks(self._sampling)
        await self._pool.close(timeout=CLOSE_TIMEOUT_S)

    @asynccontextmanager
    async def transaction(
        self,
        *,
        microdao_id: str | None = None,
        agent_id: str | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[psycopg.AsyncConnection[DictRow]]:
        """Yields a connection in a transaction: committed at the end, rolled back on exceptions.

        Rows are dicts. Row security reads `microdao_id` and `agent_id`. `timeout_s` bounds each
        statement instead of the pool's default. When the connection breaks during the commit,
        `DatabaseUnavailable` leaves open whether it was committed: retry idempotent work only.

        Raises:
            DatabaseUnavailable: PostgreSQL is away, busy, or its schema does not match.
            Overloaded: too many callers wait for a connection.
            DeadlineExceeded: a statement was cancelled by its timeout.
            InvalidRequest: PostgreSQL cannot store a parameter.
            Conflict: a unique, exclusion or foreign key was violated.
            Internal: a defect.
        """
        bound_s = timeout_s or self._limits.statement_timeout_s
        # Without any of the three the session's settings apply.
        has_context = microdao_id is not None or agent_id is not None or timeout_s is not None
        context = self._context(microdao_id, agent_id, bound_s) if has_context else None
        try:
            connection = await self._begin(context, bound_s)
            try:
                yield connection
                await connection.commit_whole()
            except BaseException:
                await connection.roll_back_quietly()
                raise
            finally:
                await self._pool.putconn(connection)
        except (psycopg.Error, UnicodeError) as error:
            raise self._translated(error) from without_values(error)
        self._note_reachable()

    async def run(
        self,
        statement: Query,
        values: Mapping[str, Any],
        *,
        microdao_id: str,
        agent_id: str | None = None,
        timeout_s: float | None = None,
    ) -> list[DictRow]:
        """Runs one statement in its own transaction and returns its rows, in one round trip not
        three.

        The client puts the values into the text. When the connection turns out to be dead, the
        statement is sent again over another one, so it must be idempotent. The server cancels it
        before the client stops waiting: after `timeout_s` at a connection, by default when a caller
        must learn that PostgreSQL is away. Raises as `transaction`.
        """

        def alone(candidate: BoundedConnection) -> Awaitable[list[DictRow]]:
            if timeout_s is not None:
                candidate.answer_timeout_s = timeout_s + ANSWER_MARGIN_S
            remaining = max(candidate.answer_timeout_s - ANSWER_MARGIN_S, 0.01)
            bound_s = min(remaining, timeout_s or self._limits.statement_timeout_s)
            return candidate.run_alone(
                self._context(microdao_id, agent_id, bound_s), statement, values
            )

        try:
            connection, rows = await self._answered(alone)
            await self._pool.putconn(connection)
        except (psycopg.Error, UnicodeError) as error:
            raise self._translated(error) from without_values(error)
        self._note_reachable()
        return rows

    async def ping(self) -> None:
        """Checks that PostgreSQL answers. Raises DatabaseUnavailable within two seconds."""
        async with self.transaction(timeout_s=PING_TIMEOUT_S):
            pass

    async def _sample(self) -> None:
        stats, pool = self._pool.get_stats(), {"pool": self._name}
        idle = stats["pool_available"]
        samples: list[Sample] = [
            ("daarion_database_connections", {**pool, "state": "idle"}, idle),
            (
                "daarion_database_connections",
                {**pool, "state": "used"},
                stats["pool_size"] - idle,
            ),
            ("daarion_database_waiting", pool, stats["requests_waiting"]),
        ]
        self._events.emit("metrics.sampled", samples=samples)

    async def _configure(self, connection: BoundedConnection) -> None:
        milliseconds = {
            "statement_ms": _milliseconds(self._limits.statement_timeout_s),
            "lock_ms": _milliseconds(self._limits.lock_timeout_s),
            "idle_ms": _milliseconds(self._limits.idle_in_transaction_s),
        }
        await connection.execute(SET_SESSION, milliseconds)
        try:
            await assume_service_role(connection)
        except ConfigurationError as error:
            self._refusal = error
            raise
        self._refusal = self._connect_failure = None

    def _note_connect_failure(self, reason: str) -> None:
        self._connect_failure = reason

    async def _begin(self, context: dict[str, str] | None, timeout_s: float) -> BoundedConnection:
        connection, _ = await self._answered(lambda candidate: candidate.begin(context))
        connection.answer_timeout_s = timeout_s + ANSWER_MARGIN_S
        return connection

    async def _answered(
        self, ask: Callable[[BoundedConnection], Awaitable[T]]
    ) -> tuple[BoundedConnection, T]:
        """Takes a connection and runs `ask`; retries with another one when the connection is dead,
        as all pooled ones are after a restart of the server.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + BEGIN_TIMEOUT_S
        while True:
            connection = await self._pool.getconn(
                timeout=min(ACQUIRE_TIMEOUT_S, deadline - clock())
            )
            try:
                connection.answer_timeout_s = max(deadline - clock(), 0.01)
                return connection, await ask(connection)
            except BaseException as error:
                await self._pool.putconn(connection)
                if (
                    isinstance(error, psycopg.OperationalError)
                    and connection.closed
                    and clock() < deadline
                ):
                    continue
                raise

    @staticmethod
    def _context(microdao_id: str | None, agent_id: str | None, timeout_s: float) -> dict[str, str]:
        return {
            "microdao_id": microdao_id or "",
            "agent_id": agent_id or "",
            "statement_ms": _milliseconds(timeout_s),
        }

    def _translated(self, error: Exception) -> Exception:
        translated = translate(error)
        if not isinstance(translated, DatabaseUnavailable):
            return translated
        if self._refusal is not None:
            return self._refusal
        if self._reachable:
            self._reachable = False
            self._events.emit(
                "database.away",
                error=type(error).__name__,
                reason=getattr(error, "sqlstate", None) or self._connect_failure,
            )
        return translated

    def _note_reachable(self) -> None:
        if not self._reachable:
            self._reachable = True
            self._events.emit("database.back")


class PostgresAdapter:
    """Implements a port by statements alone: it holds the pool and no state."""

    def __init__(self, database: Database) -> None:
        self._database = database


def _milliseconds(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))
