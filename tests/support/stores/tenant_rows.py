"""One row of a tenant in every table that has such rows, written as the owner of all tables."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import psycopg

# In the order of their references. Memories are stored by the application itself.
ROWS = (
    """
    INSERT INTO llm_usage (
        id, request_id, occurred_at, agent_id, microdao_id, channel_id, logical_model, provider,
        physical_model, prompt_tokens, completion_tokens, total_tokens, cached_tokens,
        reasoning_tokens, latency_ms, outcome, streamed, estimated, attempts
    ) VALUES (
        %(id)s, 'r', now(), %(agent_id)s, %(microdao_id)s, %(channel_id)s, 'm', 'p', 'm', 1, 1, 2,
        0, 0, 1, 'ok', false, false, 1
    )
    """,
    """
    INSERT INTO llm_attempts (
        call_id, number, last, request_id, occurred_at, agent_id, microdao_id, channel_id,
        credential, logical_model, provider, physical_model, prompt_tokens, completion_tokens,
        total_tokens, cached_tokens, reasoning_tokens, latency_ms, outcome, call_outcome, streamed,
        estimated, recorder
    ) VALUES (
        %(id)s, 1, true, 'r', now(), %(agent_id)s, %(microdao_id)s, %(channel_id)s, 'anonymous',
        'm', 'p', 'm', 1, 1, 2, 0, 0, 1, 'ok', 'ok', false, false, ''
    )
    """,
    """
    INSERT INTO llm_spending (kind, subject, day, recorder, cost_usd)
    VALUES ('microdao', %(microdao_id)s, now()::date, %(id)s, 1),
           ('agent', %(agent_id)s, now()::date, %(id)s, 1)
    """,
    """
    INSERT INTO audit_log (id, principal, action, object, outcome, microdao_id, agent_id, count)
    VALUES (
        %(id)s, 'operator', 'export', %(channel_id)s, 'success', %(microdao_id)s, %(agent_id)s, 1
    )
    """,
    """
    INSERT INTO llm_idempotency (
        microdao_id, key, fingerprint, leased_by, leased_until, answer, expires_at, agent_id,
        channel_id
    ) VALUES (
        %(microdao_id)s, uuid_send(%(id)s), '', %(id)s, now(), 'a', now() + interval '1 day',
        %(agent_id)s, %(channel_id)s
    )
    """,
    "INSERT INTO llm_batches (id, microdao_id, total) VALUES (%(id)s, %(microdao_id)s, 1)",
    """
    INSERT INTO llm_batch_items (
        batch_id, position, microdao_id, custom_id, request, agent_id, channel_id
    ) VALUES (%(id)s, 0, %(microdao_id)s, '0', '{}', %(agent_id)s, %(channel_id)s)
    """,
    """
    INSERT INTO llm_batch_turns (microdao_id) VALUES (%(microdao_id)s) ON CONFLICT DO NOTHING
    """,
    """
    INSERT INTO tool_calls (
        id, microdao_id, call_id, agent_id, channel_id, tool_id, via, request_id, fingerprint, rule,
        state
    ) VALUES (
        %(id)s, %(microdao_id)s, %(id)s, %(agent_id)s, %(channel_id)s, 'projects.list', 'http', 'r',
        '', 'r', 'settled'
    )
    """,
    """
    INSERT INTO tool_results (id, microdao_id, body, expires_at)
    VALUES (%(id)s, %(microdao_id)s, '1', now() + interval '1 day')
    """,
    """
    INSERT INTO agent_runs (
        id, microdao_id, agent_id, channel_id, trigger_id, invocation, nonce, state, leased_until
    ) VALUES (
        %(id)s, %(microdao_id)s, %(agent_id)s, %(channel_id)s, %(id)s, '{}', '', 'queued', now()
    )
    """,
    """
    INSERT INTO channels (microdao_id, id, name) VALUES (%(microdao_id)s, %(channel)s, 'c')
    ON CONFLICT DO NOTHING
    """,
    """
    INSERT INTO channel_members (microdao_id, channel_id, member_id)
    VALUES (%(microdao_id)s, %(channel)s, %(agent_id)s)
    """,
    """
    INSERT INTO channel_messages (
        id, microdao_id, channel_id, position, sender_id, sender_type, body, fingerprint, created_at
    ) VALUES (
        %(id)s, %(microdao_id)s, %(channel)s, %(position)s, %(agent_id)s, 'human', 'Привіт', '',
        now()
    )
    """,
    r"""
    INSERT INTO channel_events (
        microdao_id, channel_id, position, kind, event_key, payload, created_at
    ) VALUES (
        %(microdao_id)s, %(channel)s, %(position)s + 1, 'run.step', uuid_send(%(id)s),
        ('{"run_id":"r","agent_id":' || to_json(%(agent_id)s::text) || ',"text":"\u0000"}')::json,
        now()
    )
    """,
    """
    INSERT INTO invocation_outbox (id, microdao_id, channel_id, message_id, agent_id)
    VALUES (%(id)s, %(microdao_id)s, %(channel)s, %(id)s, %(agent_id)s)
    """,
    """
    INSERT INTO projects (id, microdao_id, name, status)
    VALUES (%(id)s, %(microdao_id)s, 'p', 'active')
    """,
    """
    INSERT INTO follow_ups (
        id, microdao_id, title, project_id, created_by, idempotency_key, fingerprint
    ) VALUES (
        %(id)s, %(microdao_id)s, 't', %(id)s, %(agent_id)s, uuid_send(%(id)s), ''
    )
    """,
)


async def add_rows(
    owner: psycopg.AsyncConnection[Any], microdao_id: str, agent_id: str, channel: UUID
) -> None:
    """Adds one row to each table. `owner` is not bound by row security."""
    values = {
        "id": uuid4(),
        "microdao_id": microdao_id,
        "agent_id": agent_id,
        "channel": channel,
        "channel_id": str(channel),
        "position": uuid4().int % 1_000_000_000,
    }
    for statement in ROWS:
        await owner.execute(statement.encode(), values)


async def tables_with(owner: psycopg.AsyncConnection[Any], text: str) -> set[str]:
    """Returns the tables of which any row holds `text` anywhere."""
    tables = await (
        await owner.execute(
            "SELECT table_name FROM information_schema.tables JOIN pg_class"
            " ON oid = format('%I.%I', table_schema, table_name)::regclass"
            " WHERE table_schema = current_schema() AND table_type = 'BASE TABLE'"
            " AND NOT relispartition"
        )
    ).fetchall()
    found = set()
    for (table,) in tables:
        query = f'SELECT EXISTS (SELECT FROM "{table}" AS row WHERE strpos(row::text, %s) > 0)'
        row = await (await owner.execute(query.encode(), [text])).fetchone()
        if row is not None and row[0]:
            found.add(table)
    return found
