"""Runs in a real PostgreSQL: who may take them over, what counts as an attempt, and rows that
nobody can read.
"""

from __future__ import annotations

from uuid import uuid4

import psycopg
import pytest

from backends.agents.runs import OTHER_AGENTS_AFTER_S, PostgresRuns
from backends.postgres.erasing import TenantRows
from backends.postgres.pool import Database, PoolLimits
from contracts.agents.invocations import AgentInvocation
from contracts.agents.runs import NewRun
from contracts.identity import new_id
from contracts.memory.administration import EraseRequest
from tests.support.events import RecordedEvents

OWN, SOFIA = "microdao:7", "agent:sofia"
LAPSED_S = 0.0
HELD_S = 60.0


@pytest.fixture
def events():
    return RecordedEvents()


@pytest.fixture
async def store(database_url, events):
    database = Database(database_url, events=events, limits=PoolLimits(max_size=4))
    await database.open()
    yield PostgresRuns(database, events)
    await database.close()


async def accepted(store, *, agent=SOFIA, lease_s=LAPSED_S):
    payload = {"channel_id": "channel:1", "text": "Привіт"}
    invocation = AgentInvocation.model_validate(
        {"agent_id": agent, "entrypoint": "cron", "payload": payload}
    )
    _, run = await store.accept(
        NewRun(new_id(), OWN, agent, "channel:1", uuid4().hex, invocation, None, "nonce", None),
        lease_s,
    )
    return run


async def change(url, run, assignment):
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("SELECT set_config('daarion.microdao_id', %s, false)", (OWN,))
        await connection.execute(
            f"UPDATE agent_runs SET {assignment} WHERE id = %s".encode(), (run.id,)
        )


async def test_an_attempt_counts_once_its_work_began(store):
    run = await accepted(store)
    for _ in range(3):  # replicas that died before they came to it
        (taken,) = await store.lease(LAPSED_S, 10, [SOFIA])
        assert (taken.id, taken.attempt, taken.claimed) == (run.id, 1, True)
    assert await store.note(taken, LAPSED_S)
    assert [
        taken.attempt for _ in range(2) for taken in await store.lease(LAPSED_S, 10, [SOFIA])
    ] == [2, 3]


async def test_runs_of_agents_that_a_process_does_not_know_are_left_to_those_that_do(
    store, database_url
):
    run = await accepted(store)
    assert await store.lease(LAPSED_S, 10, ["agent:other"]) == []
    await change(
        database_url, run, f"leased_until = now() - interval '{OTHER_AGENTS_AFTER_S + 60} seconds'"
    )
    assert [taken.id for taken in await store.lease(LAPSED_S, 10, ["agent:other"])] == [run.id]


async def test_the_database_measures_how_long_a_reply_is_being_posted(store, database_url):
    run = await accepted(store)
    await change(database_url, run, "created_at = now() - interval '2 hours'")
    run.state, run.reply = "posting", "Так."
    assert await store.note(run, LAPSED_S)
    (taken,) = await store.lease(LAPSED_S, 10, [SOFIA])
    assert taken.posting_s < 600
    await change(database_url, run, "posting_since = now() - interval '1 hour'")
    assert await store.note(taken, LAPSED_S)  # another attempt does not begin anew
    (taken,) = await store.lease(LAPSED_S, 10, [SOFIA])
    assert 3_600 <= taken.posting_s < 4_200


async def test_an_unreadable_run_is_reported_and_postponed_and_others_are_claimed(
    store, database_url, events
):
    unreadable, whole = await accepted(store), await accepted(store)
    await change(database_url, unreadable, "journal = '{no json}'")
    assert [taken.id for taken in await store.lease(HELD_S, 10, [SOFIA])] == [whole.id]
    assert [event["run_id"] for event in events.named("agents.run_unreadable")] == [
        str(unreadable.id)
    ]
    await change(database_url, unreadable, "journal = '{}'")
    assert await store.lease(HELD_S, 10, [SOFIA]) == []


async def test_an_erased_run_is_neither_taken_nor_continued(store, database_url, events):
    waiting, held = await accepted(store), await accepted(store, lease_s=HELD_S)
    database = Database(database_url, events=events)
    await database.open()
    erased = await TenantRows(database).erase(EraseRequest(microdao_id=OWN, agent_id=SOFIA))
    await database.close()
    assert erased["runs"] == 2
    assert await store.lease(LAPSED_S, 10, [SOFIA]) == []
    assert not await store.note(held, HELD_S)
    assert await store.find(OWN, waiting.id) is None
