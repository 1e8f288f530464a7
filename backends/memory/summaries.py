"""Summaries with their sources."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from backends.memory.areas import identity, tenant_rows, tenant_transaction
from backends.postgres.pool import PostgresAdapter
from contracts.identity import Tenant
from contracts.memory.ports import Summary

READ = """
SELECT summary AS text, sources, last_seq, since, until, model FROM memory_summaries
WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s AND channel_id = %(channel_id)s
  AND size = %(size)s
"""
# Not written if a source was deleted while the model wrote: the summary would bring it back.
WRITE = """
INSERT INTO memory_summaries (
    microdao_id, agent_id, channel_id, size, summary, sources, last_seq, since, until, model
)
SELECT %(microdao_id)s, %(agent_id)s, %(channel_id)s, %(size)s, %(text)s, %(sources)s, %(last_seq)s,
       %(since)s, %(until)s, %(model)s
WHERE (
    SELECT count(*) FROM memories
    WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s AND id = ANY(%(sources)s)
) = cardinality(%(sources)s)
ON CONFLICT (microdao_id, agent_id, channel_id, size) DO UPDATE
SET summary = excluded.summary, sources = excluded.sources, last_seq = excluded.last_seq,
    since = excluded.since, until = excluded.until, model = excluded.model, created_at = now()
"""
EVERY_CHANNEL = ""


class Summaries(PostgresAdapter):
    """Implements SummaryStore."""

    async def read(self, tenant: Tenant, channel_id: str | None, size: int) -> Summary | None:
        values = _key(tenant, channel_id, size)
        rows = await tenant_rows(self._database, tenant, READ, values)
        return Summary(**rows[0]) if rows else None

    async def write(
        self, tenant: Tenant, channel_id: str | None, size: int, summary: Summary
    ) -> None:
        values = _key(tenant, channel_id, size) | asdict(summary)
        values |= {"text": summary.text.replace("\0", ""), "sources": list(summary.sources)}
        async with tenant_transaction(self._database, tenant) as connection:
            await connection.execute(WRITE, values)


def _key(tenant: Tenant, channel_id: str | None, size: int) -> dict[str, Any]:
    channel = channel_id if channel_id is not None else EVERY_CHANNEL
    return {**identity(tenant), "channel_id": channel, "size": size}
