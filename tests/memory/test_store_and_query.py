"""Stores and queries over HTTP against a real PostgreSQL."""

import asyncio

import pytest

from backends.memory.lexicon.index import Lexicon
from contracts.errors import DatabaseUnavailable
from contracts.memory.ports import LexicalAnswer
from tests.support.memory.application import BORYS, SOFIA, Memory, eventually, succeeded
from tests.support.memory.hashing_embedder import HashingEmbedder


async def test_stored_fact_comes_back_first(memory: Memory):
    await memory.store("Обід о першій годині", channel_id="channel:1")
    stored = await memory.store(
        "Бюджет спільноти затвердили в травні",
        channel_id="channel:1",
        meta={"author": "user:olha", "source": "matrix"},
    )
    assert stored["indexed"] is True
    answer = await memory.query("бюджет спільноти", explain=True)
    first = answer["items"][0]
    assert first["id"] == stored["id"]
    assert first["content"] == "Бюджет спільноти затвердили в травні"
    assert 0 < first["score"] <= 1
    assert first["meta"]["author"] == "user:olha"
    assert first["meta"]["source"] == "matrix"
    assert first["meta"]["timestamp"]
    assert set(first["explain"]["ranks"]) == {"dense", "lexical", "words", "recent"}
    assert "degraded" not in answer


async def test_exchange_of_a_conversation_is_one_memory(memory: Memory):
    body = {
        **SOFIA,
        "kind": "conversation",
        "content": {
            "user_message": "Хто веде розсилку?",
            "agent_reply": "Розсилку веде Мирослава.",
        },
    }
    stored = succeeded(await memory.post("/store", body))
    assert stored["id"].startswith("mem-")
    items = (await memory.query("хто веде розсилку"))["items"]
    assert [item["content"] for item in items] == ["Хто веде розсилку?\nРозсилку веде Мирослава."]


async def test_meta_comes_back_as_it_was_sent(memory: Memory):
    meta = {
        "b": 1,
        "a": [1.5, None, True],
        "nested": {"Ключ": "значення"},
        "big": 2**63,
        "tiny": 1e-9,
        "memory": "мій власний ключ",
    }
    await memory.store("Записка з додатками", meta=meta)
    found = (await memory.query("записка"))["items"][0]["meta"]
    assert {key: found[key] for key in meta} == meta


async def test_null_meta_is_the_same_as_no_meta(memory: Memory):
    stored = await memory.store("Запис без додатків", meta=None)
    assert (await memory.store("Запис без додатків"))["id"] == stored["id"]


async def test_same_content_is_the_same_memory_only_with_the_same_circumstances(memory: Memory):
    first = await memory.store("Зустріч у вівторок", channel_id="channel:1", meta={"n": 1})
    again = await memory.store("Зустріч у вівторок", channel_id="channel:1", meta={"n": 1})
    assert again["id"] == first["id"]
    assert again["duplicate"] is True
    others = [
        await memory.store("Зустріч у вівторок", channel_id="channel:2", meta={"n": 1}),
        await memory.store("Зустріч у вівторок", channel_id="channel:1", meta={"n": 2}),
        await memory.store(
            "Зустріч у вівторок", channel_id="channel:1", meta={"n": 1}, kind="task"
        ),
        await memory.store("Зустріч у вівторок", BORYS, channel_id="channel:1", meta={"n": 1}),
    ]
    assert len({first["id"], *(other["id"] for other in others)}) == 5


async def test_idempotency_key_makes_a_retry_the_same_memory(memory: Memory):
    body = {**SOFIA, "kind": "task", "content": {"text": "Написати звіт"}}
    key = {"Idempotency-Key": "retry-1"}
    first = succeeded(await memory.post("/store", {**body, "meta": {"try": 1}}, headers=key))
    again = succeeded(await memory.post("/store", {**body, "meta": {"try": 2}}, headers=key))
    assert again["id"] == first["id"]
    other = await memory.post("/store", {**body, "content": {"text": "Зовсім інше"}}, headers=key)
    assert other.status_code == 409
    assert other.json()["error"]["type"] == "conflict"


async def test_simultaneous_stores_of_one_memory_make_one(memory: Memory):
    stored = await asyncio.gather(*(memory.store("Той самий запис", wait=0) for _ in range(20)))
    assert len({answer["id"] for answer in stored}) == 1


async def test_an_item_of_a_query_is_not_stored_as_new(memory: Memory):
    stored = await memory.store("Каса відкрита до шостої вечора")
    item = (await memory.query("коли зачиняється каса"))["items"][0]
    body = {
        **SOFIA,
        "kind": item["kind"],
        "content": {"text": item["content"]},
        "meta": item["meta"],
    }
    again = succeeded(await memory.post("/store", body))
    assert again["id"] == stored["id"]
    changed = succeeded(
        await memory.post("/store", {**body, "content": {"text": "Каса тепер до сьомої"}})
    )
    assert changed["id"] != stored["id"]
    items = (await memory.query("каса", limit=10))["items"]
    assert len(items) == 2


async def test_a_long_text_is_found_by_any_of_its_parts_and_shown_once(memory: Memory):
    filler = " ".join(f"Пункт {number} описує звичайний порядок роботи." for number in range(120))
    stored = await memory.store(
        f"{filler} Резервний ключ лежить у зеленій шухляді. {filler}", kind="kb"
    )
    answer = await memory.query("резервний ключ у зеленій шухляді", limit=10)
    assert [item["id"] for item in answer["items"]] == [stored["id"]]
    assert "зеленій шухляді" in answer["items"][0]["content"]
    assert len(answer["items"][0]["content"]) <= 900


async def test_filters(memory: Memory):
    await memory.store(
        "Звіт про воду перший", channel_id="channel:a", created_at="2026-01-10T10:00:00Z"
    )
    await memory.store(
        "Звіт про воду другий",
        channel_id="channel:b",
        kind="task",
        created_at="2026-02-10T10:00:00Z",
    )
    await memory.store(
        "Звіт про воду третій", kind="dao-event", created_at="2026-03-10T10:00:00+02:00"
    )
    assert set(await memory.contents("звіт про воду", channel_id="channel:a")) == {
        "Звіт про воду перший",
        "Звіт про воду третій",
    }
    assert await memory.contents("звіт про воду", kinds=["task"]) == ["Звіт про воду другий"]
    assert await memory.contents("звіт про воду", since="2026-03-01T00:00:00Z") == [
        "Звіт про воду третій"
    ]
    assert await memory.contents("звіт про воду", until="2026-02-10T10:00:00Z") == [
        "Звіт про воду перший"
    ]
    assert await memory.contents(
        "звіт про воду", since="2026-02-10T10:00:00Z", until="2026-02-10T10:00:01Z"
    ) == ["Звіт про воду другий"]
    assert await memory.contents("звіт про воду", kinds=["kb"]) == []


async def test_newest_events_are_short_term(memory: Memory):
    await memory.store("Щойно приїхала доставка", channel_id="channel:1")
    item = (await memory.query("доставка"))["items"][0]
    assert item["meta"]["memory"] == {
        "id": item["id"],
        "tier": "short-term",
        "channel_id": "channel:1",
    }
    assert item["meta"]["source"] == "channel:1"


async def test_without_the_embedder_the_other_arms_answer(
    memory: Memory, embedder: HashingEmbedder
):
    await memory.store("Пароль від воріт змінено")
    embedder.go_away()
    stored = await memory.store("Ворота зачиняють опівночі", wait=0)
    assert stored["indexed"] is False
    answer = await memory.query("ворота")
    assert answer["degraded"] == ["dense"]
    assert {item["content"] for item in answer["items"]} == {
        "Пароль від воріт змінено",
        "Ворота зачиняють опівночі",
    }


async def test_without_the_lexical_index_neither_grams_nor_words_answer(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
):
    await memory.store("Кота звати Гвинтик")

    async def refuse(*_: object) -> LexicalAnswer:
        raise DatabaseUnavailable("the statement took too long")

    monkeypatch.setattr(Lexicon, "search", refuse)
    answer = await memory.query("кіт", explain=True)
    assert answer["degraded"] == ["lexical"]
    (item,) = answer["items"]
    assert set(item["explain"]["ranks"]) == {"dense", "recent"}


async def test_embedding_follows_when_the_embedder_returns(
    memory: Memory, embedder: HashingEmbedder
):
    embedder.go_away()
    stored = [await memory.store(f"Запис без вектора {number}", wait=0) for number in range(40)]
    embedder.come_back()

    async def indexed() -> bool:
        again = [succeeded(await memory.post("/store", _body(number))) for number in range(40)]
        assert [answer["id"] for answer in again] == [answer["id"] for answer in stored]
        return all(answer["indexed"] for answer in again)

    await eventually(indexed)
    assert embedder.passages == 40
    assert "degraded" not in await memory.query("запис")


def _body(number: int) -> dict[str, object]:
    return {**SOFIA, "kind": "conversation", "content": {"text": f"Запис без вектора {number}"}}


async def test_a_waiting_store_returns_as_soon_as_it_is_indexed_and_not_later_than_asked(
    memory: Memory, embedder: HashingEmbedder
):
    clock = asyncio.get_running_loop().time
    begin = clock()
    assert (await memory.store("Швидкий запис", wait=30))["indexed"] is True
    assert clock() - begin < 25
    embedder.go_away()
    begin = clock()
    assert (await memory.store("Повільний запис", wait=0.5))["indexed"] is False
    assert 0.5 <= clock() - begin < 20


async def test_one_tenant_with_much_to_embed_does_not_hold_up_another(
    memory: Memory, embedder: HashingEmbedder
):
    embedder.gate.clear()
    await memory.store(
        " ".join(f"Масовий запис {number}." for number in range(10_000)), BORYS, wait=0
    )
    await memory.store("Один запис іншої агентки", wait=0)
    embedder.gate.set()

    async def indexed() -> bool:
        return bool((await memory.store("Один запис іншої агентки", wait=0))["indexed"])

    await eventually(indexed)
    turn = next(turn for turn, tenant in enumerate(embedder.tenants) if SOFIA["agent_id"] in tenant)
    assert turn <= 4  # the claims that both lanes held, and their next ones


async def test_same_text_of_two_memories_is_shown_once(memory: Memory):
    await memory.store("Оголошення про толоку", meta={"n": 1})
    await memory.store("Оголошення  про толоку", meta={"n": 2})
    assert len((await memory.query("толока", limit=10))["items"]) == 1


async def test_any_object_is_searchable_by_its_keys_and_values(memory: Memory):
    content = {
        "title": "Полагодити дах",
        "deadline": "2026-06-01",
        "assignees": ["Олесь", "Марта"],
        "done": False,
    }
    body = {**SOFIA, "kind": "task", "content": content, "wait_indexed_s": 10}
    stored = succeeded(await memory.post("/store", body))
    item = (await memory.query("Марта дах"))["items"][0]
    assert item["id"] == stored["id"]
    assert "deadline: 2026-06-01" in item["content"]


async def test_kind_filter_and_metadata_are_other_names_of_kinds_and_meta(memory: Memory):
    body = {**SOFIA, "kind": "task", "content": {"text": "Полагодити насос"}}
    stored = succeeded(await memory.post("/store", {**body, "metadata": {"author": "user:olha"}}))
    await memory.store("Насос гудів усю ніч")
    again = succeeded(
        await memory.post(
            "/store", {**body, "meta": {"author": "user:olha"}, "metadata": {"author": "user:olha"}}
        )
    )
    assert again["id"] == stored["id"]
    items = (await memory.query("насос", kind_filter=["task"]))["items"]
    assert [item["meta"]["author"] for item in items] == ["user:olha"]
    assert [
        item["id"]
        for item in (await memory.query("насос", kinds=["task"], kind_filter=["task"]))["items"]
    ] == [stored["id"]]
    assert len((await memory.query("насос", kinds=None, kind_filter=None))["items"]) == 2


async def test_two_names_of_a_field_with_different_values_are_refused(memory: Memory):
    body = {**SOFIA, "kind": "task", "content": {"text": "Полагодити насос"}}
    question = {**SOFIA, "query": "насос"}
    for path, wrong, name in (
        (
            "/query",
            {**question, "kinds": ["task"], "kind_filter": ["kb"]},
            "kind_filter: another name of `kinds`",
        ),
        (
            "/store",
            {**body, "meta": {"n": 1}, "metadata": {"n": True}},
            "metadata: another name of `meta`",
        ),
    ):
        refused = await memory.post(path, wrong)
        assert (refused.status_code, refused.json()["error"]["message"]) == (
            400,
            f"{name}, and the values differ: send one of them",
        )
    assert (await memory.post("/query", {**question, "kind_filter": ["rumour"]})).status_code == 400
    assert (await memory.post("/store", {**body, "metadata": []})).status_code == 400
