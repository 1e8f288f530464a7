"""Connection parameters, and a psycopg connection with a client-side bound on every round trip."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Self

import psycopg
from psycopg.abc import RV, PQGen, Query
from psycopg.conninfo import make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.rows import DictRow
from psycopg.waiting import wait_async

from configs.stores import login_parameters
from contracts.errors import Internal

CANCEL_TIMEOUT_S = 0.25
_INTERVAL_S = 0.1

# A vanished peer is noticed within about twenty seconds, also on an idle connection.
DEFAULTS: dict[str, str | int | None] = {
    "application_name": "daarion",
    "connect_timeout": 2,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

BEGIN = "BEGIN"
# One message, so one round trip. Row security sees the tenant until the transaction ends.
SET_CONTEXT = """
SELECT set_config('daarion.microdao_id', %(microdao_id)s, true),
       set_config('daarion.agent_id', %(agent_id)s, true),
       set_config('statement_timeout', %(statement_ms)s, true)
"""
BEGIN_WITH = f"BEGIN;{SET_CONTEXT}"


def conninfo(url: str) -> str:
    """Returns libpq's connection string for `url` over our `DEFAULTS`. Raises as
    `login_parameters`.
    """
    return make_conninfo("", **{**DEFAULTS, **login_parameters(url)})


class BoundedConnection(psycopg.AsyncConnection[DictRow]):
    """Bounds every round trip on the client's side.

    The server enforces statement timeouts and the kernel TCP keepalives; neither notices a server
    process that is stopped or thrashes, because its sockets stay open. After `answer_timeout_s`
    without an answer the connection is closed and `psycopg.OperationalError` raised. Cancelling the
    task cancels the statement within twice `CANCEL_TIMEOUT_S`, or else closes the connection;
    psycopg itself would wait ten seconds.
    """

    answer_timeout_s: float = 2.0

    @classmethod
    async def connect(  # type: ignore[override]  # psycopg's keywords are in `parameters`
        cls,
        conninfo: str = "",
        *,
        on_failure: Callable[[str], None] | None = None,
        **parameters: Any,
    ) -> Self:
        """Connects as psycopg does. Calls `on_failure` with the reason of a failure, which the pool
        does not report.
        """
        try:
            return await super().connect(conninfo, **parameters)
        except psycopg.Error as error:
            if on_failure is not None:
                on_failure(_reason(error))
            raise

    async def begin(self, context: dict[str, str] | None) -> None:
        """Begins a transaction; `context` has the values of `BEGIN_WITH`, or is None."""
        if context is None:
            await self.execute(BEGIN)
        else:
            await psycopg.AsyncClientCursor(self).execute(BEGIN_WITH, context)

    async def run_alone(
        self, context: dict[str, str], statement: Query, values: Mapping[str, Any]
    ) -> list[DictRow]:
        """Sets the context and runs one statement in one message, which is one implicit
        transaction.

        Returns the statement's rows.
        """
        cursor = psycopg.AsyncClientCursor(self)
        # Bound apart: the statement may use the context's parameter names for other values.
        await cursor.execute(
            f"{cursor.mogrify(SET_CONTEXT, context)};{cursor.mogrify(statement, values)}"
        )
        cursor.nextset()
        return await cursor.fetchall() if cursor.description else []

    async def commit_whole(self) -> None:
        """Commits. Raises Internal when a statement failed and the failure was ignored: the server
        would roll back and report success.
        """
        if self.pgconn.transaction_status == TransactionStatus.INERROR:
            raise Internal("a failed statement was ignored in a transaction; nothing was stored")
        await self.commit()

    async def roll_back_quietly(self) -> None:
        """Rolls back; a failure of the rollback does not hide the exception that caused it."""
        if self.closed:
            return
        try:
            await self.rollback()
        except psycopg.Error:  # the server rolls back when the connection closes
            await self.close()

    async def wait(  # the signature is psycopg's
        self,
        gen: PQGen[RV],
        interval: float = _INTERVAL_S,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> RV:
        bound = self.answer_timeout_s if timeout is None else min(timeout, self.answer_timeout_s)
        try:
            return await wait_async(gen, self.pgconn.socket, interval=interval, timeout=bound)
        except psycopg.OperationalError:
            self._close_if_busy()
            raise
        except asyncio.CancelledError:
            await self._stop_statement(gen)
            raise

    async def _stop_statement(self, gen: PQGen[RV]) -> None:
        try:
            if self._is_busy():
                await self.cancel_safe(timeout=CANCEL_TIMEOUT_S)
                await wait_async(
                    gen, self.pgconn.socket, interval=_INTERVAL_S, timeout=CANCEL_TIMEOUT_S
                )
        except psycopg.Error:  # the statement was cancelled, or there was no answer
            return
        finally:
            self._close_if_busy()

    def _is_busy(self) -> bool:
        return bool(self.pgconn.transaction_status == TransactionStatus.ACTIVE)

    def _close_if_busy(self) -> None:
        if self._is_busy():
            self.pgconn.finish()


def _reason(error: psycopg.Error) -> str:
    """Returns the server's or system's reason, without the address that libpq puts in front."""
    return str(error).partition("\n")[0].rpartition("failed: ")[2]
