"""Idempotency keys of LLM calls in PostgreSQL.

Each statement names the tenant, and row security checks it.
"""

from __future__ import annotations

import uuid
from dataclasses import asdict
from typing import Any, LiteralString

from backends.postgres.pool import PostgresAdapter
from backends.postgres.purging import purge
from contracts.errors import IdempotencyConflict
from contracts.llm.idempotency import Granted, InWork, KeyUse, Settled

WRITE_TIMEOUT_S = 10.0

# Replaces an expired key; an attempt whose lease has ended is replaced only by the same request.
TAKE = """
INSERT INTO llm_idempotency AS known (
    microdao_id, key, fingerprint, agent_id, channel_id, leased_by, leased_until, expires_at
)
VALUES (
    %(microdao_id)s, %(key)s, %(fingerprint)s, %(agent_id)s, %(channel_id)s, %(leased_by)s,
    now() + make_interval(secs => %(lease_s)s), now() + make_interval(secs => %(retention_s)s)
)
ON CONFLICT (microdao_id, key) DO UPDATE
SET fingerprint = excluded.fingerprint, agent_id = excluded.agent_id,
    channel_id = excluded.channel_id, leased_by = excluded.leased_by,
    leased_until = excluded.leased_until, expires_at = excluded.expires_at, answer = NULL
WHERE known.expires_at < now()
   OR (
       known.answer IS NULL AND known.leased_until < now()
       AND known.fingerprint = excluded.fingerprint
   )
RETURNING leased_by
"""
LOOK = """
SELECT fingerprint, answer FROM llm_idempotency
WHERE microdao_id = %(microdao_id)s AND key = %(key)s
"""
RENEW = """
UPDATE llm_idempotency SET leased_until = now() + make_interval(secs => %(lease_s)s)
WHERE microdao_id = %(microdao_id)s AND key = %(key)s AND leased_by = %(leased_by)s
  AND answer IS NULL
RETURNING 1
"""
SETTLE = """
UPDATE llm_idempotency
SET answer = %(answer)s, expires_at = now() + make_interval(secs => %(retention_s)s)
WHERE microdao_id = %(microdao_id)s AND key = %(key)s AND leased_by = %(leased_by)s
RETURNING 1
"""
RELEASE = """
DELETE FROM llm_idempotency
WHERE microdao_id = %(microdao_id)s AND key = %(key)s AND leased_by = %(leased_by)s
  AND answer IS NULL
"""
PURGE = "SELECT llm_idempotency_purge(%(at_most)s) AS removed"


class PostgresIdempotency(PostgresAdapter):
    """Implements IdempotencyStore."""

    async def begin(
        self, use: KeyUse, lease_s: float, retention_s: float
    ) -> Granted | Settled | InWork:
        lease = uuid.uuid4()
        values = {
            **_values(use),
            "leased_by": lease,
            "lease_s": lease_s,
            "retention_s": retention_s,
        }
        async with self._database.transaction(
            microdao_id=use.microdao_id, timeout_s=WRITE_TIMEOUT_S
        ) as connection:
            if await (await connection.execute(TAKE, values)).fetchone() is not None:
                return Granted(lease)
            row = await (await connection.execute(LOOK, values)).fetchone()
        if row is None:
            return InWork()  # it was released at this moment: the caller retries
        if bytes(row["fingerprint"]) != use.fingerprint:
            raise IdempotencyConflict(
                "this Idempotency-Key was used for another request: "
                "take a new key for a new request"
            )
        return InWork() if row["answer"] is None else Settled(row["answer"])

    async def renew(self, use: KeyUse, lease: uuid.UUID, lease_s: float) -> bool:
        return await self._changed(use, RENEW, {"leased_by": lease, "lease_s": lease_s})

    async def settle(
        self, use: KeyUse, lease: uuid.UUID, answer: bytes, retention_s: float
    ) -> bool:
        return await self._changed(
            use, SETTLE, {"leased_by": lease, "answer": answer.decode(), "retention_s": retention_s}
        )

    async def release(self, use: KeyUse, lease: uuid.UUID) -> None:
        async with self._database.transaction(microdao_id=use.microdao_id) as connection:
            await connection.execute(RELEASE, {**_values(use), "leased_by": lease})

    async def purge(self) -> int:
        return await purge(self._database, PURGE)

    async def _changed(self, use: KeyUse, statement: LiteralString, values: dict[str, Any]) -> bool:
        async with self._database.transaction(
            microdao_id=use.microdao_id, timeout_s=WRITE_TIMEOUT_S
        ) as connection:
            return (
                await (await connection.execute(statement, {**_values(use), **values})).fetchone()
                is not None
            )


def _values(use: KeyUse) -> dict[str, Any]:
    return asdict(use)
