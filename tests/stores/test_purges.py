"""One purge run removes everything that is due, however much that is, in transactions of a bounded
size.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import psycopg
import pytest

from backends.agents.runs import PostgresRuns
from backends.llm.batches import PostgresBatchQueue
from backends.llm.idempotency import PostgresIdempotency
from backends.llm.usage_ledger import PostgresUsageLedger
from backends.memory.short_term import EventRetention
from backends.postgres.pool import Database
from backends.tools.ledger import LedgerLimits, PostgresToolLedger
from backends.workspace.outbox import PostgresOutbox
from deployments.graph.resources import WingEnvironment
from deployments.workspace.wiring import WorkspaceArgs, WorkspaceRuntime
from launcher.postgres import DatabaseUrls
from tests.support.access import fixed_access
from tests.support.events import RecordedEvents
from tests.support.llm.answers import llm_replica
from tests.support.tools.toolcore import replica

DUE = 25_000
KEPT = 500
ROWS = f"generate_series(1, {DUE + KEPT}) AS n"
WHEN = f"now() - CASE WHEN n <= {DUE} THEN interval '400 days' ELSE interval '0' END"

TOOL_CALLS = f"""
INSERT INTO tool_calls (
    id, microdao_id, call_id, agent_id, tool_id, via, request_id, fingerprint, rule, state,
    started_at
)
SELECT
    gen_random_uuid(), 'microdao:7', n, 'agent:sofia', 'projects.list', 'http', 'r', '', 'r',
    'settled', {WHEN}
FROM {ROWS}
"""
TOOL_RESULTS = """
INSERT INTO tool_results (id, microdao_id, body, expires_at)
SELECT id, microdao_id, '1', started_at + interval '1 day' FROM tool_calls
"""
AGENT_RUNS = f"""
INSERT INTO agent_runs (
    id, microdao_id, agent_id, channel_id, trigger_id, invocation, nonce, state, outcome,
    leased_until, finished_at
)
SELECT
    gen_random_uuid(), 'microdao:7', 'agent:sofia', '', n, '{{}}', '', 'done', 'answered', now(),
    {WHEN}
FROM {ROWS}
"""
KEYS = f"""
INSERT INTO llm_idempotency (
    microdao_id, key, fingerprint, leased_by, leased_until, answer, expires_at
)
SELECT
    'microdao:7', int4send(n::integer), '', gen_random_uuid(), now(), '',
    {WHEN} + interval '1 hour'
FROM {ROWS}
"""
EVENTS = f"""
INSERT INTO memory_events (microdao_id, agent_id, memory_id, kind, content, created_at, recorded_at)
SELECT 'microdao:7', 'agent:sofia', n, 'task', '{{}}', {WHEN}, {WHEN} FROM {ROWS}
"""
AREA = "INSERT INTO memory_areas (microdao_id, agent_id) VALUES ('microdao:7', 'agent:sofia')"
CHANNEL = (
    "INSERT INTO channels (microdao_id, id, name) VALUES ('microdao:7', gen_random_uuid(), 'c')"
)
CHANNEL_EVENTS = f"""
INSERT INTO channel_events (microdao_id, channel_id, position, kind, event_key, payload, created_at)
SELECT microdao_id, id, n, 'run.step', int4send(n::integer), '{{}}', {WHEN} FROM channels, {ROWS}
"""
BATCHES = f"""
INSERT INTO llm_batches (id, microdao_id, total, created_at, ended_at)
SELECT gen_random_uuid(), 'microdao:' || n, 10, {WHEN}, now() FROM {ROWS} WHERE n % 10 = 0
"""
BATCH_ITEMS = """
INSERT INTO llm_batch_items (batch_id, position, microdao_id, custom_id, request)
SELECT id, n, microdao_id, n, '' FROM llm_batches, generate_series(0, 9) AS n
"""
USAGE = f"""
INSERT INTO llm_usage (
    id, request_id, occurred_at, agent_id, microdao_id, logical_model, provider, physical_model,
    prompt_tokens, completion_tokens, total_tokens, cached_tokens, reasoning_tokens, latency_ms,
    outcome, streamed, estimated, attempts
)
SELECT
    gen_random_uuid(), 'r', {WHEN}, 'agent:' || n % 7, 'microdao:7', 'm', 'p', 'm', 1, 1, 2, 0, 0,
    1, 'ok', false, false, 1
FROM {ROWS}
"""
ATTEMPTS = """
INSERT INTO llm_attempts (
    call_id, number, last, request_id, occurred_at, agent_id, microdao_id, credential,
    logical_model, provider, physical_model, prompt_tokens, completion_tokens, total_tokens,
    cached_tokens, reasoning_tokens, latency_ms, outcome, call_outcome, streamed, estimated,
    recorder
)
SELECT
    id, 1, true, 'r', occurred_at, agent_id, microdao_id, 'anonymous', 'm', 'p', 'm', 1, 1, 2, 0, 0,
    1, 'ok', 'ok', false, false, ''
FROM llm_usage
"""
SPENDING = """
INSERT INTO llm_spending (kind, subject, day, recorder, cost_usd)
SELECT 'microdao', 'microdao:7', (now() - make_interval(days => n))::date, '', 1
FROM generate_series(0, 399) AS n
"""
SUMMARIES = f"""
INSERT INTO memory_summaries (
    microdao_id, agent_id, channel_id, size, summary, sources, last_seq, created_at
)
SELECT 'microdao:7', 'agent:sofia', n, 50, '', '{{}}', 0, {WHEN} FROM {ROWS}
"""
MESSAGES = f"""
INSERT INTO channel_messages (
    id, microdao_id, channel_id, position, sender_id, sender_type, body, fingerprint, created_at
)
SELECT
    gen_random_uuid(), microdao_id, id, n, 'user:olena', 'human', '', '', {WHEN}
FROM channels, {ROWS}
"""
INVOCATIONS = """
INSERT INTO invocation_outbox (id, microdao_id, channel_id, message_id, agent_id, state, settled_at)
SELECT gen_random_uuid(), microdao_id, channel_id, id, 'agent:sofia', 'delivered', now()
FROM channel_messages
"""
TOOL = """
INSERT INTO tools (tool_id, version, enabled, origin, definition) VALUES
    ('current', 25500, true, 'admin', '{}'), ('old', 1, true, 'admin', '{}')
"""
TOOL_VERSIONS = f"""
INSERT INTO tool_versions (tool_id, version, enabled, origin, definition, created_at)
SELECT 'current', n, true, 'admin', '{{}}'::json, {WHEN} FROM {ROWS}
UNION ALL SELECT 'old', 1, true, 'admin', '{{}}', now() - interval '400 days'
"""
TURNS = f"INSERT INTO llm_batch_turns (microdao_id) SELECT 'microdao:' || n FROM {ROWS}"


async def purge_tool_calls(database: Database) -> None:
    await PostgresToolLedger(database).purge()


async def purge_agent_runs(database: Database) -> None:
    await PostgresRuns(database, RecordedEvents()).purge(90.0)


async def purge_keys(database: Database) -> None:
    await PostgresIdempotency(database).purge()


async def purge_batches(database: Database) -> None:
    await PostgresBatchQueue(database).purge(30 * 86_400.0)


async def purge_usage(database: Database) -> None:
    await PostgresUsageLedger(database, RecordedEvents()).purge(30.0)


async def purge_events(database: Database) -> None:
    await EventRetention(database, 90.0).run()


async def purge_summaries(database: Database) -> None:
    await EventRetention(database, 0.0, 90.0).run()


async def purge_versions(database: Database) -> None:
    await PostgresToolLedger(database, LedgerLimits(keep_versions_days=90)).purge()


async def purge_channels(database: Database) -> None:
    await PostgresOutbox(database).purge(7.0, None)


async def purge_messages(database: Database) -> None:
    await PostgresOutbox(database).purge(7.0, 90.0)


@pytest.mark.parametrize(
    ("statements", "purge", "left"),
    [
        ([TOOL_CALLS, TOOL_RESULTS], purge_tool_calls, {"tool_calls": KEPT, "tool_results": KEPT}),
        ([AGENT_RUNS], purge_agent_runs, {"agent_runs": KEPT}),
        ([KEYS], purge_keys, {"llm_idempotency": KEPT}),
        (
            [BATCHES, BATCH_ITEMS, TURNS],
            purge_batches,
            {"llm_batches": KEPT // 10, "llm_batch_items": KEPT, "llm_batch_turns": 0},
        ),
        ([AREA, EVENTS], purge_events, {"memory_events": KEPT}),
        ([CHANNEL, CHANNEL_EVENTS], purge_channels, {"channel_events": KEPT}),
        (
            [USAGE, ATTEMPTS, SPENDING],
            purge_usage,
            {"llm_usage": KEPT, "llm_attempts": KEPT, "llm_spending": 63},  # today and 62 days
        ),
        ([AREA, EVENTS, SUMMARIES], purge_summaries, {"memory_summaries": KEPT}),
        (
            [CHANNEL, MESSAGES, INVOCATIONS],
            purge_messages,
            {"channel_messages": KEPT, "invocation_outbox": KEPT},
        ),
        ([TOOL, TOOL_VERSIONS], purge_versions, {"tool_versions": KEPT + 1}),
    ],
    ids=[
        "tool calls",
        "agent runs",
        "idempotency keys",
        "batches",
        "short-term memory",
        "channel events",
        "usage",
        "summaries",
        "messages",
        "tool versions",
    ],
)
async def test_one_run_removes_all_that_is_due(
    database: Database,
    database_urls: DatabaseUrls,
    statements: list[str],
    purge: Callable[[Database], Awaitable[None]],
    left: dict[str, int],
) -> None:
    async with await psycopg.AsyncConnection.connect(
        database_urls.superuser, autocommit=True
    ) as owner:
        for statement in statements:
            await owner.execute(statement)
        await purge(database)
        for table, rows in left.items():
            found = await (await owner.execute(f"SELECT count(*) FROM {table}")).fetchone()
            assert (table, found) == (table, (rows,))


async def left_in(owner_url: str, table: str) -> int:
    async with await psycopg.AsyncConnection.connect(owner_url) as connection:
        row = await (await connection.execute(f"SELECT count(*) FROM {table}")).fetchone()
    assert row is not None
    return int(row[0])


async def purged(owner_url: str, table: str) -> None:
    async with asyncio.timeout(60):
        while await left_in(owner_url, table) != KEPT:
            await asyncio.sleep(0.05)


async def test_toolcore_purges_by_itself(
    database_urls: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.tools.recorder.PURGE_EVERY_S", 0.05)
    async with replica(database_urls.service):
        async with await psycopg.AsyncConnection.connect(
            database_urls.superuser, autocommit=True
        ) as owner:
            await owner.execute(TOOL_CALLS)
        await purged(database_urls.superuser, "tool_calls")


async def test_the_llm_proxy_purges_its_ledger_where_that_is_configured(
    database_urls: DatabaseUrls,
) -> None:
    async with await psycopg.AsyncConnection.connect(
        database_urls.superuser, autocommit=True
    ) as owner:
        for statement in (USAGE, ATTEMPTS):
            await owner.execute(statement)
    sections = {"usage": {"retention_days": 30}}
    async with llm_replica(database_urls.service, "http://127.0.0.1:9", sections=sections):
        for table in ("llm_usage", "llm_attempts"):
            await purged(database_urls.superuser, table)


async def test_the_workspace_purges_by_itself(
    database_urls: DatabaseUrls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that invokes no agents."""
    monkeypatch.setattr("deployments.workspace.wiring.PURGE_EVERY_S", 0.05)
    runtime = WorkspaceRuntime(
        WorkspaceArgs(invoke_agents=False, keep_messages_days=90),
        WingEnvironment(database_urls.service, tmp_path, "http://127.0.0.1:9", fixed_access()),
        RecordedEvents(),
    )
    await runtime.open()
    async with await psycopg.AsyncConnection.connect(
        database_urls.superuser, autocommit=True
    ) as owner:
        for statement in (CHANNEL, CHANNEL_EVENTS, MESSAGES):
            await owner.execute(statement)
    for table in ("channel_events", "channel_messages"):
        await purged(database_urls.superuser, table)
    await runtime.close()
