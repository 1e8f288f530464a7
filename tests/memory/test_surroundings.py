"""Turns and sections beside those that were found, in a real PostgreSQL."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from psycopg import AsyncConnection
from psycopg.sql import SQL

from backends.postgres.connection import BoundedConnection
from contracts.deadline import Deadline
from contracts.errors import DatabaseUnavailable
from contracts.identity import Tenant
from contracts.memory.ports import Filters
from tests.support.memory.application import (
    BORYS,
    SOFIA,
    STRANGER,
    Memory,
    eventually,
    succeeded,
)

NOON = datetime(2025, 5, 10, 9, tzinfo=UTC)
HOUR_S = 3_600.0


async def tell(memory, texts, tenant=SOFIA, *, start=NOON, channel="channel:1", every=60, **fields):
    """Stores turns in the given order, a minute apart; returns their ids."""
    ids = []
    for place, text in enumerate(texts):
        at = (start + timedelta(seconds=every * place)).isoformat()
        stored = await memory.store(text, tenant, channel_id=channel, created_at=at, **fields)
        ids.append(stored["id"])
    return ids


ALL = Filters()


async def passages(memory, ids, tenant=SOFIA, filters=ALL, gap_s=HOUR_S):
    """Returns what stands beside these turns and sections by group."""
    recall = memory.runtime.cases.recall
    scope = await recall.scopes.scope_of(Tenant(**tenant))
    question = await recall.embedder.embed(
        ["питання"], "query", tenant="", deadline=Deadline.after(30)
    )
    return await recall.surroundings.around(scope, filters, ids, question, gap_s)


async def around(memory, ids, *tenant, **options):
    """Returns the texts of `passages`."""
    return [passage.text for passage in await passages(memory, ids, *tenant, **options)]


async def test_two_turns_on_each_side_in_their_order(memory: Memory):
    ids = await tell(memory, [f"репліка {n}" for n in range(9)])
    assert await around(memory, [ids[4]]) == [f"репліка {n}" for n in range(2, 7)]
    assert await around(memory, [ids[0], ids[1]]) == [f"репліка {n}" for n in range(4)]
    assert await around(memory, []) == []


async def test_turns_of_one_moment_keep_the_order_of_their_arrival(memory: Memory):
    ids = await tell(memory, [f"разом {n}" for n in range(5)], every=0)
    assert await around(memory, [ids[2]]) == [f"разом {n}" for n in range(5)]


def rows_read(plan):
    """Returns the most rows that a node of the plan below this one returned in all its loops."""
    here = (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)) * plan["Actual Loops"]
    return max([here, *map(rows_read, plan.get("Plans", []))])


async def test_of_many_turns_of_one_moment_only_the_neighbours_are_read(
    memory: Memory, monkeypatch, database_urls
):
    ids = await tell(memory, [f"разом {n}" for n in range(3)], every=0)
    columns = "id, microdao_id, agent_id, channel_id, kind, created_at, content, meta"
    async with await AsyncConnection.connect(database_urls.superuser, autocommit=True) as owner:
        await owner.execute(
            f"INSERT INTO agent_memories (chunk_no, {columns}) "
            "SELECT 1000 + n, 'imported ' || n, microdao_id, agent_id, channel_id, kind, "
            "created_at, 'imported ' || n, meta FROM agent_memories, generate_series(1, 2000) AS n "
            "WHERE id = %s",
            [ids[0]],
        )
        await owner.execute("ANALYZE agent_memories")
    plans = []
    run_alone = BoundedConnection.run_alone

    async def explained(connection, context, statement, values):
        if "gap_s" in values:
            explain = SQL("EXPLAIN (ANALYZE, FORMAT JSON) ") + statement
            plans.extend(await run_alone(connection, context, explain, values))
        return await run_alone(connection, context, statement, values)

    monkeypatch.setattr(BoundedConnection, "run_alone", explained)
    assert await around(memory, [ids[0]]) == ["разом 0", "разом 1", "разом 2"]
    [plan] = plans
    assert 3 <= rows_read(plan["QUERY PLAN"][0]["Plan"]) < 50


async def test_while_the_model_changes_each_chunk_counts_once_with_its_vector(
    memory: Memory, database_urls
):
    """A replica that still asks with the old model has the rows that wait for the new one, too."""
    ids = await tell(memory, [f"репліка {n}" for n in range(7)])
    folder = memory.data_dir / "kb" / "shared"
    folder.mkdir(parents=True)
    sections = "".join(f"# Розділ {n}\n\nТекст розділу номер {n}.\n\n" for n in range(3))
    (folder / "правила.md").write_text(sections, encoding="utf-8")
    succeeded(await memory.post("/kb/reindex", {}))
    [section] = (await memory.query("текст розділу номер 1", limit=1, kinds=["kb"]))["items"]
    hits = [ids[3], section["id"]]

    async def embedded():
        found = await passages(memory, hits)
        return found if all(passage.cosine is not None for passage in found) else None

    before = await eventually(embedded)
    assert len(before) == 5 + 3
    columns = (
        "chunk_no, id, part, document_id, microdao_id, agent_id, channel_id, kind, created_at, "
        "content, meta"
    )
    async with await AsyncConnection.connect(database_urls.superuser) as owner:
        await owner.execute(
            f"INSERT INTO agent_memories ({columns}) SELECT {columns} FROM agent_memories"
        )
    assert await passages(memory, hits) == before


async def test_a_late_arrival_stands_at_its_time(memory: Memory):
    ids = await tell(memory, ["перша", "друга"], every=600)
    await tell(memory, ["між ними"], start=NOON + timedelta(seconds=300))
    assert await around(memory, [ids[0]]) == ["перша", "між ними", "друга"]


async def test_strangers_are_no_neighbours(memory: Memory):
    [own] = await tell(memory, ["своя репліка"])
    await tell(memory, ["інший канал"], channel="channel:2", start=NOON + timedelta(seconds=60))
    await tell(memory, ["інший агент"], BORYS, start=NOON + timedelta(seconds=60))
    await tell(memory, ["інша спільнота"], STRANGER, start=NOON + timedelta(seconds=60))
    await tell(memory, ["задача"], kind="task", start=NOON + timedelta(seconds=60))
    await tell(memory, ["за два дні"], start=NOON + timedelta(days=2))
    assert await around(memory, [own]) == ["своя репліка"]
    assert await around(memory, [own], STRANGER) == []


async def test_a_memory_without_a_channel_has_no_neighbours(memory: Memory):
    first, _ = await tell(memory, ["сам один", "сама одна"], channel=None)
    assert await around(memory, [first]) == []


async def test_neighbours_pass_the_filters(memory: Memory):
    ids = await tell(memory, ["до", "знайдена", "після"])
    since = Filters(since=NOON + timedelta(seconds=60))
    assert await around(memory, [ids[1]], filters=since) == ["знайдена", "після"]


async def test_a_deleted_turn_is_gone(memory: Memory):
    ids = await tell(memory, ["одна", "друга", "третя"])
    succeeded(await memory.client.delete(f"/items/{ids[1]}", params=SOFIA))
    assert await around(memory, [ids[0]]) == ["одна", "третя"]


async def test_neighbouring_sections_of_a_document(memory: Memory):
    folder = memory.data_dir / "kb" / "microdao" / "microdao%3A7"
    folder.mkdir(parents=True)
    sections = "".join(f"# Розділ {n}\n\nТекст розділу номер {n}.\n\n" for n in range(6))
    (folder / "правила.md").write_text(sections, encoding="utf-8")
    (folder / "інше.md").write_text("# Інше\n\nЗовсім інший документ.\n", encoding="utf-8")
    succeeded(await memory.post("/kb/reindex", {"microdao_id": "microdao:7"}))
    found = await memory.query("текст розділу номер 3", limit=1)
    assert "номер 3" in found["items"][0]["content"]
    texts = await around(memory, [found["items"][0]["id"]])
    assert [text[-2] for text in texts] == ["1", "2", "3", "4", "5"]


async def noise(memory):
    texts = [f"Сьогодні говорили про справу номер {n}." for n in range(130)]
    await tell(memory, texts, channel="channel:3", every=7_200)


async def test_an_answer_is_found_by_its_question(memory: Memory):
    await noise(memory)
    await tell(memory, ["Добрий день!", "Коли наступна поїздка до Львова?", "У суботу зранку."])
    rival = {"channel": "channel:2", "start": NOON + timedelta(days=30)}
    await tell(memory, ["Гаразд, дякую.", "У неділю ввечері."], **rival)
    found = await memory.contents("поїздка до Львова", limit=100)
    assert "У суботу зранку." in found[:2]

    assert "У неділю ввечері." not in found[:2]


async def test_a_stock_reply_leaves_room_for_others(memory: Memory):
    turns = [
        text for n in range(40) for text in (f"Дмитро: завдання {n} вже готово?", "Бот: Готово.")
    ]
    await tell(memory, turns, every=30)
    found = await memory.contents("чи готово", limit=20)
    assert len(found) == len(set(found)) == 20


async def test_who_speaks_and_when_decide_between_equals(memory: Memory):
    said = {"Яринка": "Взяла намет із зеленим дном.", "Софія": "Взяла намет із синім дном."}
    for place, (name, text) in enumerate(said.items()):
        start = NOON + timedelta(days=40 * place)
        await tell(memory, [text], speaker=name, start=start, channel=f"channel:{name}")
    for question, first in (
        ("Який намет у Яринки?", "Яринка"),
        ("Який намет у Софії?", "Софія"),
        ("Який намет узяли в травні 2025?", "Яринка"),
        ("Який намет узяли в червні 2025?", "Софія"),
    ):
        assert (await memory.contents(question))[0].startswith(first), question


async def test_late_surroundings_are_left_out(memory: Memory):
    await tell(memory, ["перша", "друга"])

    class Late:
        async def around(self, *_):
            await asyncio.sleep(30)

    cases = memory.runtime.cases
    memory.runtime.cases = replace(cases, recall=replace(cases.recall, surroundings=Late()))
    answer = await memory.query("перша", timeout_s=2)
    assert answer["degraded"] == ["structure"]
    assert answer["items"][0]["content"] == "перша"


async def test_a_speaker_stands_before_what_was_said(memory: Memory):
    stored = await memory.store("Намет у мене", speaker="Яринка", channel_id="channel:1")
    shown = (await memory.query("намет"))["items"][0]
    assert (shown["id"], shown["content"]) == (stored["id"], "Яринка: Намет у мене")
    again = await memory.store("Яринка: Намет у мене", speaker="Яринка", channel_id="channel:1")
    assert again["duplicate"]


async def test_a_speaker_needs_something_said(memory: Memory):
    for fields in (
        {"content": {"deadline": "завтра"}, "speaker": "Яринка"},
        {"content": {"text": "так"}, "speaker": "ім'я: з двокрапкою"},
        {"content": {"text": "так"}, "speaker": ""},
        {"content": {"text": "так", "deadline": "завтра"}, "speaker": "Яринка"},
        {"content": {"text": " ", "agent_reply": "так"}, "speaker": "Яринка"},
    ):
        answer = await memory.post("/store", {**SOFIA, "kind": "conversation", **fields})
        assert answer.status_code == 400
        assert "speaker" in answer.text


class Away:
    """Surroundings of a database that has just gone."""

    async def around(self, *_):
        raise DatabaseUnavailable("the database cannot be reached; try again")


async def test_without_its_surroundings_the_answer_is_that_of_fusion(memory: Memory, events):
    await tell(memory, ["перша", "друга"])
    cases = memory.runtime.cases
    memory.runtime.cases = replace(cases, recall=replace(cases.recall, surroundings=Away()))
    answer = await memory.query("перша")
    assert answer["degraded"] == ["structure"]
    assert answer["items"][0]["content"] == "перша"
    assert events.named("memory.arm_down")[0]["arm"] == "structure"
