"""What is noted reaches the trail in bundles, and a flood of refusals cannot fill it."""

import asyncio

import pytest

from backends.access.audit import PostgresAudit
from configs.environment import read_environment
from contracts.access.audit import AuditQuery, AuditRecord
from contracts.access.settings import AuditSettings
from contracts.errors import DatabaseUnavailable
from deployments.graph.resources import Resources, access_control, open_access
from services.access import audit
from services.access.audit import MAX_DENIALS, MAX_OF_ONE, AuditTrail


class Store:
    """Keeps records; `away` makes it refuse them."""

    def __init__(self):
        self.records, self.kept_days, self.away = [], [], False

    async def add(self, records):
        if self.away:
            raise DatabaseUnavailable("away")
        self.records += records

    async def purge(self, keep_days):
        self.kept_days.append(keep_days)


def denial(object_="llm/proxy", **fields):
    return AuditRecord(
        **{"principal": "taras", "action": "POST", "outcome": "denied", **fields, "object": object_}
    )


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def trail(store, events):
    return AuditTrail(store, events, lambda: AuditSettings(keep_days=90))


async def test_refusals_alike_are_one_record_with_a_count(store, trail):
    first = denial(request_id="r-1")
    for record in (first, denial(request_id="r-2"), denial("tools/call"), denial(action="GET")):
        trail.note(record)
    await trail.flush()
    assert store.records[0] == first.model_copy(update={"count": 2})
    assert [record.count for record in store.records] == [2, 1, 1]
    await trail.flush()
    assert len(store.records) == 3


async def test_a_flood_of_refusals_is_cut_counted_and_leaves_room_for_actions(store, trail, events):
    ended = [denial(outcome="success", request_id=f"r-{each}") for each in range(MAX_DENIALS)]
    for action in ended:
        trail.note(action)
    for number in range(10_000):
        trail.note(denial(principal=f"taras-{number}"))
    action = denial(outcome="success", request_id="r-1")
    trail.note(action)
    await trail.flush()
    assert len(store.records) == len(ended) + MAX_DENIALS + 1
    assert store.records[-1] == action
    assert events.events == [("audit.dropped", {"count": 10_000 - MAX_DENIALS})]


async def test_a_principal_hides_neither_refusals_of_others_nor_its_own_by_a_flood(
    store, trail, events
):
    flood = [denial(f"agents/{number}", microdao_id="microdao:7") for number in range(1_000)]
    for record in flood:
        trail.note(record)
    other = denial(principal="olena")
    trail.note(other)
    store.away = True
    with pytest.raises(DatabaseUnavailable):
        await trail.flush()
    store.away = False
    trail.note(denial("agents/more"))
    await trail.flush()
    assert store.records[:MAX_OF_ONE] == flood[:MAX_OF_ONE]
    [rest] = [record for record in store.records if record.object == "*"]
    assert (rest.principal, rest.action, rest.microdao_id) == ("taras", "*", None)
    assert rest.count == len(flood) - MAX_OF_ONE + 1
    assert (other in store.records, len(store.records)) == (True, MAX_OF_ONE + 2)
    assert events.events == []


def test_an_end_comes_after_its_beginning_also_within_a_millisecond():
    for _ in range(200):
        begun = denial(outcome="started")
        assert begun.id < begun.ended("success").id


async def test_ends_of_two_actions_stay_two_records(store, trail):
    for request_id in ("r-1", "r-2"):
        trail.note(denial(outcome="success", request_id=request_id))
    await trail.flush()
    assert [record.request_id for record in store.records] == ["r-1", "r-2"]


async def test_what_cannot_be_written_is_kept(store, trail):
    trail.note(denial())
    store.away = True
    with pytest.raises(DatabaseUnavailable):
        await trail.flush()
    trail.note(denial())
    store.away = False
    await trail.flush()
    assert [record.count for record in store.records] == [2]


async def test_it_writes_and_purges_in_the_background_and_writes_the_rest_at_the_end(
    store, trail, monkeypatch
):
    monkeypatch.setattr(audit, "FLUSH_S", 0.01)
    monkeypatch.setattr(audit, "PURGE_S", 0.01)
    trail.start()
    trail.note(denial())
    async with asyncio.timeout(30):
        while not (store.records and store.kept_days):
            await asyncio.sleep(0.01)
    assert store.kept_days[0] == 90
    monkeypatch.undo()
    await trail.close()
    trail.start()
    trail.note(denial("tools/call"))
    await trail.close()
    assert [record.object for record in store.records] == ["llm/proxy", "tools/call"]


async def test_every_process_of_the_graph_has_a_trail(database, database_url, events, tmp_path):
    environment = read_environment(
        {"DATABASE_URL": database_url, "DAARION_DATA_DIR": str(tmp_path)}
    )
    async with Resources() as resources:
        access = await open_access(environment, events, resources)
        assert access_control(environment, access).audit is access.audit
        access.audit.note(denial())
    page = await PostgresAudit(database).page(AuditQuery())
    assert [entry.object for entry in page.items] == ["llm/proxy"]
    assert events.events == []
