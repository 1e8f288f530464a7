"""No tenant sees another's memory: over HTTP, in SQL with the service's role, in documents.

A last test removes the policies and shows that this suite would fail.
"""

from pathlib import Path

import psycopg
import pytest
from psycopg.rows import dict_row

from backends.postgres.pool import Database
from launcher.postgres import DatabaseUrls
from tests.support.access import access_control
from tests.support.events import RecordedEvents
from tests.support.memory.application import (
    BORYS,
    SOFIA,
    STRANGER,
    Memory,
    memory_application,
    succeeded,
)
from tests.support.memory.hashing_embedder import HashingEmbedder

SECRET = "Таємний код 4711"
TENANT_TABLES = ["memories", "memory_events", "agent_memories", "memory_queue", "memory_areas",
                 "memory_terms", "memory_postings", "memory_summaries", "kb_documents",
                 "memory_erasures"]  # fmt: skip
HOSTILE_IDS = [
    "",
    "%",
    "'",
    "microdao:7' OR '1'='1",
    "microdao:7\\",
    "*",
    "microdao:_",
    "MICRODAO:7",
    " microdao:7",
    "microdao:7 ",
]


@pytest.fixture
async def informed(memory: Memory) -> Memory:
    """Sofia of microDAO 7 knows a secret; her microDAO's knowledge base has a document."""
    folder = memory.data_dir / "kb" / "microdao" / "microdao%3A7"
    folder.mkdir(parents=True)
    (folder / "plan.md").write_text("# План\nСховище під каменем", encoding="utf-8")
    succeeded(await memory.post("/kb/reindex", {}))
    await memory.store(SECRET, channel_id="channel:1")
    return memory


HTTP_STRANGERS = [
    BORYS,
    STRANGER,
    {"agent_id": "agent:sofia", "microdao_id": "MICRODAO:7"},
    {"agent_id": "%", "microdao_id": "%"},
]


async def test_no_tenant_reads_another_over_http(informed: Memory):
    secret_id = (await informed.query("таємний код"))["items"][0]["id"]
    for tenant in HTTP_STRANGERS:
        await see_nothing(informed, tenant, secret_id)


async def see_nothing(informed: Memory, tenant: dict[str, str], secret_id: str) -> None:
    assert not any(
        "4711" in text for text in await informed.contents("таємний код 4711", tenant, limit=100)
    )
    assert succeeded(await informed.client.get("/items", params=tenant))["items"] == []
    assert (await informed.client.delete(f"/items/{secret_id}", params=tenant)).status_code == 404
    assert succeeded(await informed.post("/summarize", tenant))["items_processed"] == 0
    assert (
        await informed.client.get("/export", params=tenant)
    ).text == '{"type":"end","count":0}\n'
    stamped = {"memory": {"id": secret_id, "tier": "mid-term"}}
    stored = await informed.store(SECRET, tenant, meta=stamped)
    assert stored["id"] != secret_id
    assert (await informed.query("таємний код"))["items"][0]["id"] == secret_id


async def test_knowledge_base_of_a_microdao_is_for_its_agents(informed: Memory):
    for tenant in (SOFIA, BORYS):
        assert "План\nСховище під каменем" in await informed.contents("сховище під каменем", tenant)
    assert await informed.contents("сховище під каменем", STRANGER) == []


async def test_erasing_one_tenant_leaves_the_others(informed: Memory):
    await informed.store("Запис Бориса", BORYS)
    await informed.store("Запис чужинки", STRANGER)
    succeeded(await informed.post("/erase", SOFIA))
    assert "Запис Бориса" in await informed.contents("запис", BORYS)
    assert "Запис чужинки" in await informed.contents("запис", STRANGER)
    assert not any("4711" in text for text in await informed.contents("таємний код"))


async def visible_rows(url: str, microdao_id: str | None, agent_id: str | None) -> dict[str, int]:
    """Counts the rows of each table that the service's role sees without a predicate."""
    seen = {}
    async with await psycopg.AsyncConnection.connect(url, row_factory=dict_row) as connection:
        if microdao_id is not None:
            await connection.execute(
                "SELECT set_config('daarion.microdao_id', %s, true), "
                "set_config('daarion.agent_id', %s, true)",
                (microdao_id, agent_id),
            )
        for table in TENANT_TABLES:
            row = await (
                await connection.execute(
                    f"SELECT count(*) AS rows FROM {table} WHERE microdao_id = 'microdao:7'"
                )
            ).fetchone()
            assert row is not None
            seen[table] = row["rows"]
    return seen


async def test_service_role_sees_nothing_without_or_with_another_tenant(
    informed: Memory, database_urls: DatabaseUrls
):
    own = await visible_rows(database_urls.service, "microdao:7", "agent:sofia")
    assert own["memories"] == 1
    assert own["agent_memories"] == 2
    assert set((await visible_rows(database_urls.service, None, None)).values()) == {0}
    for hostile in HOSTILE_IDS:
        assert set(
            (await visible_rows(database_urls.service, hostile, "agent:sofia")).values()
        ) == {0}, hostile
    borys = await visible_rows(database_urls.service, "microdao:7", "agent:borys")
    assert borys["memories"] == 0
    assert borys["agent_memories"] == 1  # the microDAO's document


async def test_service_role_cannot_write_for_another_tenant(database: Database, informed: Memory):
    statement = """
        INSERT INTO memories (
            microdao_id, agent_id, id, kind, content, meta, created_at, fingerprint
        )
        VALUES ('microdao:7', 'agent:sofia', 'mem-x', 'task', '{}', '{}', now(), 'x')
    """
    with pytest.raises(Exception, match="statement failed"):
        async with database.transaction(
            microdao_id="microdao:8", agent_id="agent:sofia"
        ) as connection:
            await connection.execute(statement)
    async with database.transaction(microdao_id="microdao:8", agent_id="agent:sofia") as connection:
        for table in (
            "memories",
            "agent_memories",
            "memory_events",
            "memory_terms",
            "memory_queue",
        ):
            assert (await connection.execute(f"DELETE FROM {table}")).rowcount == 0
            assert (
                await connection.execute(f"UPDATE {table} SET agent_id = agent_id")
            ).rowcount == 0
    assert await informed.contents("таємний код")


async def test_service_role_is_bound_and_cannot_reach_a_shard_by_its_name(
    database_urls: DatabaseUrls, informed: Memory
):
    async with await psycopg.AsyncConnection.connect(database_urls.service) as connection:
        row = await (
            await connection.execute(
                "SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user"
            )
        ).fetchone()
        assert row == (False,)
        forced = await (
            await connection.execute(
                "SELECT relname FROM pg_class "
                "WHERE relname = ANY(%s) AND relrowsecurity AND relforcerowsecurity",
                [TENANT_TABLES],
            )
        ).fetchall()
        assert {name for (name,) in forced} == set(TENANT_TABLES)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await connection.execute("SELECT count(*) FROM agent_memories_common")


async def test_without_the_policies_other_tenants_rows_are_visible(
    informed: Memory, database_urls: DatabaseUrls
):
    async with await psycopg.AsyncConnection.connect(database_urls.owner, autocommit=True) as owner:
        for table in TENANT_TABLES:
            await owner.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    naked = await visible_rows(database_urls.service, "microdao:8", "agent:sofia")
    assert naked["memories"] == 1
    assert naked["agent_memories"] == 2
    with pytest.raises(AssertionError):
        await test_service_role_sees_nothing_without_or_with_another_tenant(informed, database_urls)
    # The predicates in the statements still hold.
    assert not any("4711" in text for text in await informed.contents("таємний код", STRANGER))


async def test_admin_routes_need_the_admin_secret(
    database_url: str, tmp_path: Path, embedder: HashingEmbedder, events: RecordedEvents
):

    access = access_control("internal", "admin")
    async with memory_application(
        database_url, tmp_path, embedder, events, access=access
    ) as locked:
        routes = [
            ("POST", "/erase"),
            ("GET", "/export"),
            ("POST", "/import"),
            ("POST", "/kb/reindex"),
            ("POST", "/erase/"),
        ]
        for method, path in routes:
            assert (await locked.client.request(method, path)).status_code == 401
            assert (
                await locked.client.request(method, path, headers={"X-Internal-Secret": "internal"})
            ).status_code == 403
        admin = {"X-Internal-Secret": "admin"}
        assert succeeded(await locked.post("/erase", SOFIA, headers=admin))["ok"] is True
        assert (
            await locked.post(
                "/query", {**SOFIA, "query": "x"}, headers={"X-Internal-Secret": "internal"}
            )
        ).status_code == 200
