"""The lexical index in PostgreSQL: merged, swept, rebuilt, filtered; the log and the queue."""

import threading
from datetime import UTC, datetime, timedelta

import pytest

from backends.memory.areas import AreaDirectory, tenant_transaction
from backends.memory.lexicon import grams as gram_module
from backends.memory.lexicon import index, merging, postings
from backends.memory.lexicon import upkeep as lexicon_upkeep
from backends.memory.lexicon.grams import grams
from backends.memory.lexicon.index import Lexicon
from backends.memory.lexicon.postings import RECORD
from backends.memory.lexicon.terms import terms
from backends.memory.lexicon.upkeep import LexiconUpkeep
from backends.memory.queue import EmbeddingQueue
from backends.memory.records import MemoryStore
from backends.memory.short_term import EventRetention, ShortTermLog
from backends.postgres.connection import BoundedConnection
from backends.postgres.pool import Database
from contracts.identity import Tenant
from contracts.memory.ports import Area, Filters, ItemCandidate, LexicalAnswer, NewMemory
from tests.support.events import RecordedEvents

SOFIA = Tenant(microdao_id="microdao:7", agent_id="agent:sofia")
AREA = Area(SOFIA.microdao_id, SOFIA.agent_id)
START = datetime(2026, 1, 1, tzinfo=UTC)
WORDS = [
    "каса",
    "громада",
    "ліс",
    "ріка",
    "борошно",
    "млин",
    "збори",
    "протокол",
    "насіння",
    "теплиця",
    "дах",
    "криниця",
]


def remembered(number: int, text: str) -> NewMemory:
    return NewMemory(
        id=f"mem-{number:04}",
        tenant=SOFIA,
        kind="task" if number % 10 == 0 else "conversation",
        channel_id=f"channel:{number % 3}",
        content={"text": text},
        meta={"n": number},
        created_at=START + timedelta(minutes=number),
        fingerprint=number.to_bytes(32, "big"),
        idempotency_key=None,
        chunks=[text],
    )


def texts() -> list[str]:
    return [
        " ".join(WORDS[(number * step) % len(WORDS)] for step in (1, 2, 5, 7)) + f" №{number}"
        for number in range(300)
    ]


@pytest.fixture
async def store(database: Database) -> MemoryStore:
    filled = MemoryStore(database)
    assert (
        await filled.add_all([remembered(number, text) for number, text in enumerate(texts())])
        == 300
    )
    return filled


async def search(
    database: Database, text: str, filters: Filters | None = None, limit: int = 50
) -> LexicalAnswer:
    scope = await AreaDirectory(database).scope_of(SOFIA)
    return await Lexicon(database).search(scope, filters or Filters(), text, limit)


def ranked(answer: LexicalAnswer) -> list[tuple[str, float]]:
    return [(candidate.id, round(candidate.score, 9)) for candidate in answer.candidates]


async def levels(database: Database) -> dict[int, int]:
    """Records by level; 0 are unmerged terms."""
    async with tenant_transaction(database, SOFIA) as connection:
        rows = await (
            await connection.execute(
                "SELECT level, sum(octet_length(data)) AS size FROM memory_postings "
                "WHERE bucket >= 0 GROUP BY level"
            )
        ).fetchall()
        fresh = await (
            await connection.execute(
                "SELECT coalesce(sum(octet_length(terms)), 0) AS size FROM memory_terms"
            )
        ).fetchone()
    found = {0: fresh["size"], **{row["level"]: row["size"] for row in rows}}
    return {level: int(size) // RECORD.itemsize for level, size in found.items() if size}


async def test_merging_changes_no_answer(
    database: Database, store: MemoryStore, events: RecordedEvents, monkeypatch: pytest.MonkeyPatch
):
    before = await search(database, "теплиця для насіння")
    assert len(before.candidates) == 50
    upkeep = LexiconUpkeep(database, events)
    await upkeep.run()
    assert set(await levels(database)) == {1}
    merged = await search(database, "теплиця для насіння")
    monkeypatch.setattr(merging, "LEVEL_UP_ABOVE", 0)
    await LexiconUpkeep(database, events).locked(AREA, merging.merge)
    assert set(await levels(database)) == {2}
    raised = await search(database, "теплиця для насіння")
    assert ranked(before) == ranked(merged) == ranked(raised)
    assert before.ceiling == pytest.approx(merged.ceiling) == pytest.approx(raised.ceiling)
    await store.add(remembered(900, "теплиця для насіння саме"))
    assert (await search(database, "теплиця для насіння")).candidates[0].id == "mem-0900"


async def test_deleted_memories_leave_the_postings(
    database: Database, store: MemoryStore, events: RecordedEvents, monkeypatch: pytest.MonkeyPatch
):
    upkeep = LexiconUpkeep(database, events)
    await upkeep.run()
    held = (await levels(database))[1]
    monkeypatch.setattr(lexicon_upkeep, "SWEEP_ABOVE", 5)
    for number in range(10):
        assert await store.delete(SOFIA, f"mem-{number:04}")
    assert not {f"mem-{number:04}" for number in range(10)} & {
        name for name, _ in ranked(await search(database, "каса", limit=300))
    }
    await upkeep.run()
    assert (await levels(database))[1] < held
    assert (
        len((await search(database, "каса громада ліс ріка борошно млин", limit=300)).candidates)
        <= 290
    )


async def test_deleted_memories_take_no_place_before_they_leave_the_postings(
    database: Database, store: MemoryStore, events: RecordedEvents
):
    await LexiconUpkeep(database, events).run()
    before = [name for name, _ in ranked(await search(database, "теплиця для насіння", limit=300))]
    for name in before[:100]:
        await store.delete(SOFIA, name)
    rest = [name for name, _ in ranked(await search(database, "теплиця для насіння", limit=20))]
    assert rest == before[100:120]


async def test_a_single_deleted_memory_leaves_the_postings_within_a_day(
    database: Database, store: MemoryStore, events: RecordedEvents
):
    upkeep = LexiconUpkeep(database, events)
    await upkeep.run()
    held = (await levels(database))[1]
    await store.delete(SOFIA, "mem-0007")
    await upkeep.run()
    assert (await levels(database))[1] == held
    upkeep._swept_all_at -= lexicon_upkeep.SWEEP_ALL_EVERY_S + 1
    await upkeep.run()
    assert (await levels(database))[1] == held - len(terms(texts()[7]))
    before = ranked(await search(database, "теплиця для насіння"))
    await upkeep.run()
    assert ranked(await search(database, "теплиця для насіння")) == before


async def test_terms_with_an_older_fingerprint_are_rebuilt(
    database: Database, store: MemoryStore, events: RecordedEvents
):
    for number in range(300):
        await store.delete(SOFIA, f"mem-{number:04}")
    with pytest.MonkeyPatch.context() as older:
        older.setattr(gram_module, "one_alphabet", str)
        for number, text in enumerate(texts(), 1_000):
            await store.add(remembered(number, text))
        await LexiconUpkeep(database, events).run()
    assert not (await search(database, "теплиця для насіння")).candidates
    assert not events.named("memory.lexicon_rebuilt")
    await store.delete(SOFIA, "mem-1000")
    newer = LexiconUpkeep(database, events)
    await newer.run()
    assert events.named("memory.lexicon_rebuilt") == [
        {"microdao_id": "microdao:7", "agent_id": "agent:sofia", "chunks": 299}
    ]
    rebuilt = ranked(await search(database, "теплиця для насіння"))
    assert len(rebuilt) == 50
    await newer.run()
    assert len(events.named("memory.lexicon_rebuilt")) == 1
    assert ranked(await search(database, "теплиця для насіння")) == rebuilt


async def test_an_area_of_a_version_without_lemmas_is_searched_until_it_is_rebuilt(
    database: Database, store: MemoryStore, events: RecordedEvents
):
    with pytest.MonkeyPatch.context() as older:
        older.setattr("backends.memory.records.terms", grams)
        older.setattr("backends.memory.lexicon.upkeep.fingerprint", lambda: "grams alone")
        await store.add(remembered(900, "Увечері діти пішли до крамниці"))
        await LexiconUpkeep(database, events).run()
    await store.add(remembered(901, "Сусіди підуть до крамниці завтра"))
    meanwhile = await search(database, "хто йшов у крамницю")
    assert {"mem-0900", "mem-0901"} <= {found.id for found in meanwhile.candidates}
    assert [found.id for found in meanwhile.words] == ["mem-0901"]
    await LexiconUpkeep(database, events).run()
    assert len(events.named("memory.lexicon_rebuilt")) == 1
    rebuilt = await search(database, "хто йшов у крамницю")
    assert {found.id for found in rebuilt.words} == {"mem-0900", "mem-0901"}
    assert ranked(rebuilt) == ranked(meanwhile)


async def test_a_chunk_with_vectors_of_two_models_is_rebuilt_once(
    database: Database, store: MemoryStore, events: RecordedEvents
):
    await LexiconUpkeep(database, events).run()
    held, before = await levels(database), ranked(await search(database, "теплиця для насіння"))
    async with tenant_transaction(database, SOFIA) as connection:
        await connection.execute(
            "UPDATE memory_areas SET lexicon = 'older' WHERE microdao_id = 'microdao:7'"
        )
        await connection.execute(
            "INSERT INTO agent_memories (chunk_no, model_version, id, microdao_id, agent_id, "
            "channel_id, kind, created_at, content, meta) SELECT chunk_no, 'another-1', id, "
            "microdao_id, agent_id, channel_id, kind, created_at, content, meta FROM agent_memories"
        )
    await LexiconUpkeep(database, events).run()
    assert [event["chunks"] for event in events.named("memory.lexicon_rebuilt")] == [300]
    assert await levels(database) == held
    assert ranked(await search(database, "теплиця для насіння")) == before


async def test_postings_are_made_outside_the_event_loop_and_written_in_slices(
    database: Database, store: MemoryStore, events: RecordedEvents, monkeypatch: pytest.MonkeyPatch
):
    await LexiconUpkeep(database, events).run()
    held, before = await levels(database), ranked(await search(database, "теплиця для насіння"))
    made_in, written = [], []
    for module, name in ((postings, "split"), (lexicon_upkeep, "in_order"), (merging, "in_order")):
        original = getattr(module, name)
        monkeypatch.setattr(
            module,
            name,
            lambda *given, original=original: (
                made_in.append(threading.current_thread()) or original(*given)
            ),
        )
    execute = BoundedConnection.execute

    async def recorded(connection, query, params=None, **options):
        if query is merging.APPEND and params["buckets"] != [postings.SUMMARY_BUCKET]:
            written.append(sum(map(len, params["data"])) // RECORD.itemsize)
        return await execute(connection, query, params, **options)

    monkeypatch.setattr(BoundedConnection, "execute", recorded)
    monkeypatch.setattr(merging, "RECORDS_AT_ONCE", 2_000)
    monkeypatch.setattr(merging, "LEVEL_UP_ABOVE", 0)
    await LexiconUpkeep(database, events).locked(AREA, merging.merge)
    assert await levels(database) == {2: held[1]}
    monkeypatch.setattr(lexicon_upkeep, "fingerprint", lambda: "newer")
    await LexiconUpkeep(database, events).run()
    assert await levels(database) == {2: held[1]}
    assert ranked(await search(database, "теплиця для насіння")) == before
    assert threading.main_thread() not in made_in
    assert sum(written) == 2 * held[1]
    assert len(written) == 2 * (1 + held[1] // 2_000) > 2


INFLECTED = {
    "кота": ("Де живе кіт?", "Вони завели сірого кота", "Кітель і кітч лежать окремо"),
    "went": ("Where did they go?", "Both of them went to Kyiv", "The goal was gold"),
    "mice": ("Whose is the mouse?", "Two mice ran off", "Mousse and mouthwash"),
}


@pytest.mark.parametrize("merged", ["unmerged", "merged"])
@pytest.mark.parametrize("form", INFLECTED)
async def test_another_form_of_a_word_is_found_by_its_lemma(
    database: Database, store: MemoryStore, events: RecordedEvents, form: str, merged: str
):
    question, answer, alike = INFLECTED[form]
    await store.add(remembered(900, answer))
    await store.add(remembered(901, alike))
    if merged == "merged":
        await LexiconUpkeep(database, events).run()
    found = await search(database, question)
    assert [candidate.id for candidate in found.words] == ["mem-0900"]
    assert found.words_ceiling > 0
    assert found.candidates[0].id == "mem-0901"


async def test_storing_cuts_words_outside_the_event_loop(
    database: Database, monkeypatch: pytest.MonkeyPatch
):
    cut_in = []
    monkeypatch.setattr(
        "backends.memory.records.terms",
        lambda text: cut_in.append(threading.current_thread()) or terms(text),
    )
    store = MemoryStore(database)
    await store.add(remembered(1, "каса"))
    assert await store.add_all([remembered(2, "млин"), remembered(3, "ліс")]) == 2
    assert len(cut_in) == 3
    assert threading.main_thread() not in cut_in


async def test_filters_before_and_after_scoring_give_the_same(
    database: Database, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
):
    filters = Filters(
        channel_id="channel:1", kinds=("conversation",), since=START + timedelta(minutes=100)
    )
    exact = await search(database, "млин", filters)
    assert exact.candidates
    for candidate in exact.candidates:
        number = int(candidate.id.removeprefix("mem-"))
        assert number % 3 == 1
        assert number % 10
        assert number >= 100
    monkeypatch.setattr(index, "ALLOWED_ROWS", 3)
    assert ranked(await search(database, "млин", filters)) == ranked(exact)


async def test_over_the_budget_the_rarest_grams_answer(
    database: Database, store: MemoryStore, events: RecordedEvents, monkeypatch: pytest.MonkeyPatch
):
    await store.add(remembered(900, "каса і рідкісний гіацинт"))
    await LexiconUpkeep(database, events).locked(AREA, merging.merge)
    # A level's summary, and the six grams of one word.
    monkeypatch.setattr(index, "BUDGET_BYTES", 80)
    answer = await search(database, "каса гіацинт")
    assert [candidate.id for candidate in answer.candidates] == ["mem-0900"]
    assert answer.ceiling > 0


async def test_terms_are_merged_while_the_embedder_is_away(
    database: Database, events: RecordedEvents
):
    store = MemoryStore(database)
    for number in range(260):
        await store.add(remembered(number, f"каса {number}"))
    await LexiconUpkeep(database, events).run()
    assert set(await levels(database)) == {1}


async def test_log_is_read_in_order_per_channel(database: Database, store: MemoryStore):
    log = ShortTermLog(database)
    events = await log.read(SOFIA, "channel:2", 5)
    assert [event.memory_id for event in events] == [
        f"mem-{number:04}" for number in (287, 290, 293, 296, 299)
    ]
    assert [event.memory_id for event in await log.read(SOFIA, None, 2)] == ["mem-0298", "mem-0299"]
    newest: list[ItemCandidate] = await log.recent(SOFIA, Filters(kinds=("task",)), 2)
    assert [candidate.id for candidate in newest] == ["mem-0290", "mem-0280"]


async def test_retention_shortens_the_log_and_leaves_the_memories(
    database: Database, store: MemoryStore
):
    async with tenant_transaction(database, SOFIA) as connection:
        await connection.execute(
            "UPDATE memory_events SET recorded_at = now() - interval '10 days' "
            "WHERE memory_id < 'mem-0290'"
        )
    await EventRetention(database, days=0).run()
    assert len(await ShortTermLog(database).read(SOFIA, None, 1_000)) == 300
    await EventRetention(database, days=7).run()
    assert len(await ShortTermLog(database).read(SOFIA, None, 1_000)) == 10
    assert len((await search(database, "каса", limit=300)).candidates) > 10


async def test_a_claim_holds_no_more_than_asked_and_no_chunk_twice(
    database: Database, store: MemoryStore
):
    first, second = EmbeddingQueue(database), EmbeddingQueue(database)
    claimed: list[int] = []
    for queue in (first, second, first, second):
        claim = await queue.lease(16)
        assert claim is not None
        assert len(claim.chunks) == 16
        claimed += [chunk.chunk_no for chunk in claim.chunks]
    assert len(set(claimed)) == 64
    await second.release(claim)
    again = await first.lease(16)
    assert again is not None
    assert {chunk.chunk_no for chunk in again.chunks} == set(claimed[-16:])
