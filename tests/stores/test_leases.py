"""Leases in PostgreSQL: of jobs, and of rows that a process of an earlier version leased."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from backends.agents.runs import PostgresRuns
from backends.llm.batches import PostgresBatchQueue
from backends.llm.idempotency import PostgresIdempotency
from backends.memory.queue import EmbeddingQueue
from backends.postgres.leases import DatabaseJobLeases
from backends.postgres.migrate import MIGRATIONS, migrate
from backends.postgres.pool import Database
from backends.tools.ledger import PostgresToolLedger
from backends.workspace.outbox import PostgresOutbox
from contracts.errors import DatabaseUnavailable
from contracts.llm.batches import Delay
from contracts.llm.idempotency import Granted, KeyUse
from launcher.postgres import PostgresServer
from tests.support.events import RecordedEvents

BEFORE_LEASES = 13
"""The last migration of the version that had a word of its own for each lease."""
SOFIA = "agent:sofia"
ID = "00000000-0000-0000-0000-000000000001"
# One row of each kind, leased by a process that died a minute ago.
OF_THE_DEAD = f"""
INSERT INTO agent_runs (
    id, microdao_id, agent_id, channel_id, trigger_id, invocation, nonce, state, owner, lease_until,
    started_at
)
SELECT
    '{ID}', 'm', '{SOFIA}', 'c', 't',
    '{{"agent_id": "{SOFIA}", "entrypoint": "cron",
       "payload": {{"channel_id": "c", "text": "Привіт"}}}}',
    'n', 'running', gen_random_uuid(), now() - interval '1 minute', now();

INSERT INTO tool_calls (
    id, microdao_id, call_id, agent_id, tool_id, effect, via, request_id, fingerprint, rule, state,
    owner, lease_until
)
SELECT
    '{ID}', 'm', 'c', '{SOFIA}', 't', 'write', 'http', 'r', '', 'r', 'running',
    gen_random_uuid(), now() - interval '1 minute';

INSERT INTO llm_batches (id, microdao_id, total) VALUES ('{ID}', 'm', 1);
INSERT INTO llm_batch_turns (microdao_id) VALUES ('m');
INSERT INTO llm_batch_items (
    batch_id, position, microdao_id, custom_id, request, state, token, due_at
)
SELECT
    '{ID}', 0, 'm', 'a', 'q', 'running', gen_random_uuid(), now() - interval '1 minute';

INSERT INTO llm_idempotency (microdao_id, key, fingerprint, token, lease_until, expires_at)
SELECT
    'm', 'k', 'f', gen_random_uuid(), now() - interval '1 minute', now() + interval '1 day';

INSERT INTO memory_queue (microdao_id, agent_id, chunk_no, memory_id, claimed_until)
SELECT 'm', '{SOFIA}', 1, 'gone', now() - interval '1 minute';

INSERT INTO memory_leases (name, holder, until)
SELECT 'job', replace('{ID}', '-', ''), now() - interval '1 minute';

INSERT INTO channels (microdao_id, id, name) VALUES ('m', '{ID}', 'c');
INSERT INTO channel_messages (
    id, microdao_id, channel_id, position, sender_id, sender_type, body, fingerprint, created_at
)
SELECT '{ID}', 'm', '{ID}', 1, 'user:olena', 'human', 'x', '', now();
INSERT INTO invocation_outbox (
    id, microdao_id, channel_id, message_id, agent_id, attempts, owner, due_at
)
SELECT
    '{ID}', 'm', '{ID}', '{ID}', '{SOFIA}', 1, gen_random_uuid(), now() - interval '1 minute';
"""


@pytest.fixture
async def earlier(postgres: PostgresServer, tmp_path: Path) -> AsyncIterator[Database]:
    """A database whose leases an earlier version took, after its upgrade."""
    for file in sorted(MIGRATIONS.glob("*.sql"))[:BEFORE_LEASES]:
        shutil.copy(file, tmp_path)
    urls = await postgres.create_database("earlier_leases")
    await migrate(urls.owner, directory=tmp_path)
    async with await psycopg.AsyncConnection.connect(urls.superuser, autocommit=True) as connection:
        await connection.execute(OF_THE_DEAD.encode())
    await migrate(urls.owner)
    database = Database(urls.service, events=RecordedEvents())
    await database.open()
    yield database
    await database.close()


async def test_leases_of_an_earlier_version_are_taken_over(earlier: Database) -> None:
    (run,) = await PostgresRuns(earlier, RecordedEvents()).lease(60.0, 10, [SOFIA])
    assert (run.id, run.attempt) == (UUID(ID), 2)

    (ended,) = await PostgresToolLedger(earlier).settle_abandoned()
    assert (ended.call_id, ended.error_kind) == ("c", "indeterminate")

    queue = PostgresBatchQueue(earlier)
    work = await queue.lease(60.0)
    assert work is not None
    assert (work.batch_id, work.failures) == (UUID(ID), 1)
    assert await queue.renew([work.lease, UUID(ID)], 60.0) == {work.lease}
    await queue.release(work, Delay(0.0))
    assert await queue.lease(60.0) is not None

    use = KeyUse("m", b"k", b"f", "agent:sofia")
    assert isinstance(await PostgresIdempotency(earlier).begin(use, 60.0, 60.0), Granted)

    claim = await EmbeddingQueue(earlier).lease(10)
    assert claim is not None
    assert claim.area.agent_id == SOFIA

    assert await DatabaseJobLeases(earlier).lease("job", 60.0)

    (invocation,) = await PostgresOutbox(earlier).lease(10, 60.0)
    assert (invocation.id, invocation.attempts) == (UUID(ID), 2)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE agent_runs SET lease_until = now()",
        "SELECT agent_runs_extend(NULL, NULL, 1) AS held",
    ],
)
async def test_a_process_of_an_earlier_version_is_told_so(
    database: Database, statement: str
) -> None:
    with pytest.raises(DatabaseUnavailable, match="does not match this version"):
        await database.run(statement, {}, microdao_id="m")


async def test_a_job_belongs_to_one_process_until_its_lease_ends(database: Database) -> None:
    first, second = DatabaseJobLeases(database), DatabaseJobLeases(database)
    assert await first.lease("job", 60.0)
    assert not await second.lease("job", 60.0)
    assert await second.lease("another", 60.0)
    assert await first.lease("job", 0.0)  # the holder renews it, here for no time at all
    assert await second.lease("job", 60.0)
    await first.release("job")  # is not the first's any more
    assert not await first.lease("job", 60.0)
    await second.release("job")
    assert await first.lease("job", 60.0)
