"""Storage quotas: which one holds for a microDAO, and how old the counts behind it are."""

import asyncio

import pytest

from backends.access.principals import PostgresPrincipals
from configs.access import contents_of, load_access
from contracts.access.settings import QuotaSettings
from services.access.directory import Directory
from services.access.quotas import COUNT_S, Quotas
from tests.support.access import fixed_access

OWN = "microdao:7"


class Stored:
    """Implements StoredCounts, and the clock."""

    def __init__(self, stored=0, takes_s=0.0):
        self.really, self.asked, self.now, self.takes_s = stored, 0, 0.0, takes_s

    async def stored(self, _kind, _microdao_id, at_most):
        await asyncio.sleep(0)
        self.asked += 1
        self.now += self.takes_s
        return min(self.really, at_most)

    def clock(self):
        return self.now


def quotas(stored, settings):
    directory = fixed_access(settings={"quotas": settings}).directory
    return Quotas(directory, stored, stored.clock)


async def admitted(tested, times):
    stored = 0
    for _ in range(times):
        if await tested.refusal("memories", OWN) is None:
            tested.added("memories", OWN)
            stored += 1
    return stored


def test_a_microdaos_own_quota_wins_over_the_default_where_it_is_given():
    settings = QuotaSettings.model_validate(
        {"default": {"memories": 10, "messages": 20}, "microdaos": {OWN: {"memories": 0}}}
    )
    assert (settings.limit("memories", OWN), settings.limit("messages", OWN)) == (0, 20)
    assert settings.limit("memories", "microdao:8") == 10
    assert settings.limit("documents", OWN) is None


async def test_what_has_no_quota_is_not_counted():
    stored = Stored()
    assert await admitted(quotas(stored, {"default": {"messages": 1}}), 5) == 5
    assert stored.asked == 0


async def test_between_two_counts_a_replica_knows_what_it_stores_itself():
    stored = Stored(stored=3)
    tested = quotas(stored, {"default": {"memories": 5}})
    assert await admitted(tested, 4) == 2
    assert stored.asked == 1
    stored.really = 4  # somebody removed one
    stored.now += COUNT_S
    assert await admitted(tested, 4) == 1
    assert stored.asked == 2


async def test_what_was_not_stored_does_not_count():
    tested = quotas(Stored(stored=3), {"default": {"memories": 5}})
    for _ in range(10):  # duplicates, or refused by the store
        assert await tested.refusal("memories", OWN, 2) is None
    assert await admitted(tested, 4) == 2


async def test_callers_at_once_count_once_and_share_what_is_left():
    stored = Stored(stored=3)
    tested = quotas(stored, {"default": {"memories": 5}})
    assert sum(await asyncio.gather(*(admitted(tested, 1) for _ in range(20)))) == 2
    assert stored.asked == 1


async def test_a_slow_count_is_made_more_rarely():
    stored = Stored(takes_s=2.0)
    tested = quotas(stored, {"default": {"memories": 500}})
    await admitted(tested, 1)
    stored.now += 39
    await admitted(tested, 1)
    assert stored.asked == 1
    stored.now += 2
    await admitted(tested, 1)
    assert stored.asked == 2


@pytest.mark.parametrize("named", [True, False])
async def test_a_changed_file_reaches_the_quotas(database, events, tmp_path, named):
    store, stored = PostgresPrincipals(database, events), Stored(stored=50)
    directory = Directory(store, events)
    tested = Quotas(directory, stored, stored.clock)

    async def write(quota):
        part = f"{{microdaos: {{'{OWN}': {quota}}}}}" if named else f"{{default: {quota}}}"
        (tmp_path / "access.yaml").write_text(f"quotas: {part}")
        await store.apply(*contents_of(load_access(tmp_path), lambda _name: None))
        await directory.refresh()

    assert await admitted(tested, 3) == 3  # nothing is read yet
    await write("{memories: 10}")
    assert await admitted(tested, 3) == 0
    await write("{memories: 52}")  # what is over the former quota was not counted
    assert await admitted(tested, 3) == 2
    await write("{memories: null}")
    assert await admitted(tested, 3) == 3
