"""The audit trail in PostgreSQL: rows are added and read, and nobody who serves can change one."""

import secrets
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
import pytest
from pydantic import ValidationError

from backends.access.audit import PostgresAudit
from contracts.access.audit import AuditQuery, AuditRecord
from contracts.errors import InvalidRequest
from contracts.identity import first_id

DAY = datetime(2026, 1, 1, 12, tzinfo=UTC)


def record(object_="access/principals/sofia", **fields):
    given = {"principal": "olena", "action": "PUT", "outcome": "started", "request_id": "r-1"}
    return AuditRecord(object=object_, **{**given, **fields})


def at(moment):
    """Returns the id of a record that was made then."""
    return UUID(int=first_id(moment).int | secrets.randbits(74))


@pytest.fixture
def store(database):
    return PostgresAudit(database)


FORBIDDEN = {
    "change a row": "UPDATE audit_log SET outcome = 'success'",
    "remove rows": "DELETE FROM audit_log",
    "empty the table": "TRUNCATE audit_log",
    "choose the time of a row": """
        INSERT INTO audit_log (id, principal, action, object, outcome, count, created_at)
        VALUES (gen_random_uuid(), 'x', 'PUT', 'x', 'started', 1, now() - interval '1 day')
    """,
    "purge young rows": "SELECT audit_log_purge(29, 1000)",
    "purge rows of no age": "SELECT audit_log_purge(NULL, 1000)",
    "drop the table": "DROP TABLE audit_log",
}


@pytest.mark.parametrize("statement", FORBIDDEN.values(), ids=FORBIDDEN)
async def test_the_services_login_may_not(store, database_url, statement):
    await store.add([record()])
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as service:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await service.execute(statement)
        found = await (await service.execute("SELECT outcome FROM audit_log")).fetchall()
    assert found == [("started",)]


async def test_records_come_back_as_they_were_added_with_their_time_and_the_databases(store):
    asked = record(microdao_id="microdao:7", agent_id="agent:sofia", count=3, request_id=None,
                   id=at(DAY))  # fmt: skip
    before = datetime.now(UTC) - timedelta(minutes=1)
    await store.add([asked])
    await store.add([asked])  # an ambiguous commit is repeated
    [entry] = (await store.page(AuditQuery())).items
    assert entry.model_dump(exclude={"created_at", "stored_at"}) == asked.model_dump()
    assert before < entry.stored_at < before + timedelta(minutes=2)
    assert entry.created_at == DAY


async def test_a_text_that_postgresql_cannot_hold_is_replaced_and_a_long_one_cut(store):
    await store.add([record("a\0\ud800" + "b" * 9_000)])
    [entry] = (await store.page(AuditQuery())).items
    assert (len(entry.object), entry.object[:2]) == (256, "a�")


async def test_pages_are_newest_first_and_filtered_by_when_things_happened(store):
    noted = [
        record(
            str(number),
            id=at(DAY + timedelta(days=number)),
            principal="olena" if number % 2 else "taras",
            outcome="denied" if number == 5 else "started",
        )
        for number in range(6)
    ]
    await store.add(noted[:1])
    await store.add(noted[3:])  # what happened earlier may be stored later
    await store.add(noted[1:3])

    async def objects(**query):
        found = await store.page(AuditQuery(**query))
        return [int(entry.object) for entry in found.items], found.next_cursor

    first, cursor = await objects(limit=4)
    assert first == [5, 4, 3, 2]
    assert await objects(limit=4, cursor=cursor) == ([1, 0], None)
    assert (await objects(principal="taras"))[0] == [4, 2, 0]
    assert (await objects(action="DELETE"))[0] == []
    assert (await objects(outcome="denied"))[0] == [5]
    within = {"since": DAY + timedelta(days=1), "until": DAY + timedelta(days=4)}
    assert (await objects(**within))[0] == [3, 2, 1]
    later = {name: moment + timedelta(microseconds=1) for name, moment in within.items()}
    assert (await objects(**later))[0] == [4, 3, 2]
    years = {"since": datetime(1, 1, 1, tzinfo=UTC), "until": datetime(9999, 1, 1, tzinfo=UTC)}
    assert len((await objects(**years))[0]) == 6
    with pytest.raises(InvalidRequest, match="another query"):
        await objects(principal="taras", cursor=cursor)


async def test_an_id_that_holds_no_time_hides_no_row(store):
    await store.add([record("odd", id=UUID(int=(1 << 128) - 2)), record("new")])
    assert [entry.object for entry in (await store.page(AuditQuery())).items] == ["odd", "new"]


def test_a_span_that_ends_before_it_begins_is_a_mistake():
    with pytest.raises(ValidationError, match="`since` is later than `until`"):
        AuditQuery(since=DAY + timedelta(seconds=1), until=DAY)
    AuditQuery(since=DAY, until=DAY)


async def test_a_purge_removes_what_is_older_than_it_keeps(store, database_owner_url):
    await store.add([record(str(days)) for days in (0, 399, 401)])
    async with await psycopg.AsyncConnection.connect(database_owner_url) as owner:
        await owner.execute(
            "UPDATE audit_log SET created_at = now() - make_interval(days => object::integer)"
        )
    await store.purge(400)
    kept = (await store.page(AuditQuery())).items
    assert sorted(entry.object for entry in kept) == ["0", "399"]
