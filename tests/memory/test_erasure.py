"""`POST /erase` reaches what every wing stores, and its receipt says what stays."""

from collections.abc import AsyncIterator, Callable
from operator import attrgetter
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from backends.postgres.erasing import CLASSES, TenantRows
from backends.postgres.pool import Database
from contracts.memory.administration import EraseRequest
from launcher.postgres import DatabaseUrls
from tests.support.memory.application import BORYS, SOFIA, STRANGER, Memory, succeeded
from tests.support.memory.hashing_embedder import HashingEmbedder
from tests.support.stores.tenant_rows import add_rows, tables_with

MICRODAO, AGENT = SOFIA["microdao_id"], SOFIA["agent_id"]
KEPT = {
    "llm_usage": "the ledger",
    "llm_attempts": "the ledger",
    "llm_spending": "the ledger",
    "memory_erasures": "receipts",
    "audit_log": "audit",
}
"""What still names an erased microDAO, as the receipt says."""
OF_NO_TENANT = {
    "schema_migrations",
    "access_state",
    "access_principals",
    "access_keys",
    "job_leases",
    "llm_usage_outbox",  # ids of calls
    "memory_spaces",
    "tools",
    "tool_versions",
    "tool_registry_revision",
}

Owner = psycopg.AsyncConnection[Any]


@pytest.fixture(autouse=True)
def embedder(embedder: HashingEmbedder) -> HashingEmbedder:
    """An embedder that is away, so that new chunks stay in the queue."""
    embedder.go_away()
    return embedder


@pytest.fixture
async def owner(database_urls: DatabaseUrls) -> AsyncIterator[Owner]:
    async with await psycopg.AsyncConnection.connect(
        database_urls.superuser, autocommit=True
    ) as connection:
        yield connection


async def count(owner: Owner, table: str, condition: str) -> int:
    statement = f"SELECT count(*) FROM {table} WHERE {condition}"
    row = await (await owner.execute(statement.encode())).fetchone()
    assert row is not None
    return int(row[0])


async def every_table(owner: Owner) -> set[str]:
    rows = await (
        await owner.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace"
            " AND relkind IN ('r', 'p') AND NOT relispartition"
        )
    ).fetchall()
    return {name for (name,) in rows}


async def fill(memory: Memory, owner: Owner, tenant: dict[str, str], channel: UUID) -> None:
    """Stores something of the tenant in every table that has rows of tenants; the chunk of its
    memory waits for its vector.
    """
    await add_rows(owner, tenant["microdao_id"], tenant["agent_id"], channel)
    await memory.store("Факт про кошторис", tenant, channel_id=str(channel), wait=0)
    values = {**tenant, "channel_id": str(channel)}
    for statement in (
        """
        INSERT INTO memory_summaries (
            microdao_id, agent_id, channel_id, size, summary, sources, last_seq
        ) VALUES (%(microdao_id)s, %(agent_id)s, %(channel_id)s, 50, 's', '{}', 0)
        """,
        """
        INSERT INTO memory_postings (microdao_id, agent_id, level, bucket, data)
        VALUES (%(microdao_id)s, %(agent_id)s, 1, 0, '') ON CONFLICT DO NOTHING
        """,
    ):
        await owner.execute(statement, values)


async def index_document(memory: Memory, microdao_id: str) -> None:
    folder = memory.data_dir / "kb" / "microdao" / microdao_id
    folder.mkdir(parents=True)
    (folder / "a.md").write_text("Текст мікроДАО", encoding="utf-8")
    succeeded(await memory.post("/kb/reindex", {}))


async def test_no_table_holds_an_erased_microdao_except_the_named_ones(
    memory: Memory, owner: Owner
):
    for tenant in (SOFIA, BORYS, STRANGER):
        await fill(memory, owner, tenant, uuid4())
    await index_document(memory, MICRODAO)
    await index_document(memory, STRANGER["microdao_id"])
    succeeded(await memory.post("/erase", {**SOFIA, "channel_id": "channel:none"}))  # a receipt
    assert await every_table(owner) - OF_NO_TENANT == await tables_with(owner, MICRODAO)
    others = await tables_with(owner, STRANGER["microdao_id"])
    receipt = succeeded(await memory.post("/erase", {"microdao_id": MICRODAO}))
    assert await tables_with(owner, MICRODAO) == set(KEPT)
    assert await tables_with(owner, STRANGER["microdao_id"]) == others
    assert {name: receipt["erased"][name] for name in CLASSES} == dict.fromkeys(CLASSES, 2)
    assert {"usage", "audit", "receipts", "caches", "queues"} <= set(receipt["kept"])
    repeated = succeeded(await memory.post("/erase", {"microdao_id": MICRODAO}))
    assert set(repeated["erased"].values()) == {0}
    assert set(repeated["erased"]) == set(receipt["erased"])
    await memory.store("Знову тут", wait=0)
    assert await memory.contents("знову") == ["Знову тут"]


async def test_an_erased_agent_leaves_what_is_of_others(memory: Memory, owner: Owner):
    channel = uuid4()
    for tenant in (SOFIA, BORYS):
        await fill(memory, owner, tenant, channel)
    before = await tables_with(owner, AGENT)
    receipt = succeeded(await memory.post("/erase", SOFIA))
    assert await tables_with(owner, AGENT) == set(KEPT)
    assert await tables_with(owner, BORYS["agent_id"]) == before
    whole = {"channels", "projects"}  # belong to the microDAO
    assert {name: receipt["erased"][name] for name in CLASSES} == {
        name: 0 if name in whole else 1 for name in CLASSES
    }
    assert await count(owner, "projects", "true") == 2
    assert await memory.contents("кошторис", BORYS) == ["Факт про кошторис"]


@pytest.mark.parametrize("spelled", [str, attrgetter("urn")])
async def test_an_erased_channel_is_gone_for_all_its_agents(
    memory: Memory, owner: Owner, spelled: Callable[[UUID], str]
):
    channel, other = uuid4(), uuid4()
    for tenant in (SOFIA, BORYS):
        await fill(memory, owner, tenant, channel)
    await fill(memory, owner, {**SOFIA, "agent_id": "agent:third"}, other)
    await memory.store("Як записано", wait=0, channel_id=spelled(channel))
    receipt = succeeded(
        await memory.post("/erase", {"microdao_id": MICRODAO, "channel_id": spelled(channel)})
    )
    assert (receipt["erased"]["memories"], receipt["erased"]["messages"]) == (3, 2)
    assert receipt["erased"]["channels"] == 1
    assert receipt["erased"]["follow_ups"] == 0  # they are of no channel
    assert await tables_with(owner, str(channel)) == set(KEPT) - {"llm_spending"}
    assert await count(owner, "channel_messages", f"channel_id = '{other}'") == 1
    assert await memory.contents("кошторис", BORYS) == []


async def test_an_agent_is_erased_from_one_channel(memory: Memory, owner: Owner):
    channel, other = uuid4(), uuid4()
    for place in (channel, other):
        await add_rows(owner, MICRODAO, AGENT, place)
    await memory.store("Перше", wait=0, channel_id=str(channel))
    await memory.store("Друге", wait=0, channel_id=str(other))
    erased = succeeded(await memory.post("/erase", {**SOFIA, "channel_id": str(channel)}))["erased"]
    assert erased["memories"] == erased["messages"] == erased["runs"] == 1
    assert erased["channels"] == erased["follow_ups"] == 0
    assert await count(owner, "channel_messages", f"sender_id = '{AGENT}'") == 1
    assert await count(owner, "channel_members", f"member_id = '{AGENT}'") == 1


async def test_an_erasure_goes_in_pieces_and_continues_after_a_failure(
    memory: Memory, owner: Owner, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("backends.postgres.erasing.ERASE_ROWS", 10)
    monkeypatch.setattr("backends.memory.removal.PIECE", 10)
    for number in range(25):
        await memory.store(f"Запис {number}", wait=0)
        await add_rows(owner, MICRODAO, AGENT, uuid4())
    # One piece of messages fits, the second meets a lock.
    blocked = await (
        await owner.execute("SELECT id FROM channels ORDER BY id DESC LIMIT 1")
    ).fetchone()
    assert blocked is not None
    async with owner.transaction():
        await owner.execute("SELECT FROM channels WHERE id = %s FOR UPDATE", blocked)
        refused = await memory.post("/erase", {"microdao_id": MICRODAO})
        assert (refused.status_code, refused.json()["error"]["retryable"]) == (503, True)
    assert await count(owner, "channel_messages", "true") == 0
    assert await count(owner, "channels", "true") > 0
    receipt = succeeded(await memory.post("/erase", {"microdao_id": MICRODAO}))
    assert (receipt["erased"]["messages"], receipt["erased"]["memories"]) == (0, 25)
    assert await tables_with(owner, MICRODAO) == set(KEPT)


async def test_every_function_of_the_schema_is_called(owner: Owner, database: Database):
    rows = await (
        await owner.execute("SELECT proname FROM pg_proc WHERE proname ~ '^erase_'")
    ).fetchall()
    assert {name for (name,) in rows} == {f"erase_{name}" for name in CLASSES}
    erased = await TenantRows(database).erase(EraseRequest(microdao_id="microdao:none"))
    assert erased == dict.fromkeys(CLASSES, 0)
