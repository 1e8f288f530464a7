"""Two principals of two microDAOs over HTTP and SQL: neither finds anything of the other's."""

from __future__ import annotations

import json

import psycopg
import pytest
import pytest_asyncio
from psycopg import sql

from contracts.access.principals import Grants
from contracts.agents.blueprints import Blueprint
from tests.conftest import TEMPLATE, copy_database
from tests.support.access import fixed_access
from tests.support.events import RecordedEvents
from tests.support.graph.surface import surface

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAMES = ("ours", "theirs")
KEYS = {name: f"dk_{name}".ljust(46, "x") for name in NAMES}
TOOLS = {"ours": None, "theirs": ["text.*"]}
PRINCIPALS = {
    name: Grants(
        agents=[f"agent:{name}", f"user:{name}"], microdaos=[f"microdao:{name}"], tools=TOOLS[name]
    )
    for name in NAMES
}
AGENT = {"name": "One", "model": "dagi-local-8b", "instructions": "Answer."}
MESSAGING, MEMORY, LLM = "/internal/messaging", "/internal/agent-memory", "/internal/llm"
RUNS = "/internal/agent-runtime/runs"


class Side:
    """What one principal made, and its client."""

    def __init__(self, name, client):
        self.name, self._client = name, client
        self.tenant = {"agent_id": f"agent:{name}", "microdao_id": f"microdao:{name}"}
        self.made = {}

    async def ask(self, method, path, body=None, **query):
        return await self._client.request(
            method,
            path,
            params=query,
            content=None if body is None else json.dumps(body),
            headers={
                "Authorization": f"Bearer {KEYS[self.name]}",
                **({} if body is None else {"Content-Type": "application/json"}),
            },
        )

    async def make(self):
        """Makes one thing of each kind; no tenant is named where the key has only one."""
        call = {"model": "dagi-local-8b", "messages": [{"role": "user", "content": "x"}]}
        memory = {"kind": "conversation", "content": {"text": f"secret of {self.name}"}}
        channel = {"name": "c", "microdao_id": self.tenant["microdao_id"]}
        members = [f"user:{self.name}", self.tenant["agent_id"]]
        made = {
            "channel": ("POST", f"{MESSAGING}/channels", {**channel, "members": members}),
            "project": ("POST", f"{MESSAGING}/projects", channel),
            "memory": ("POST", f"{MEMORY}/store", {**memory, **self.tenant}),
            "batch": (
                "POST",
                f"{LLM}/batch",
                {"requests": [{**call, "custom_id": "1", "metadata": self.tenant}]},
            ),
            "call": (
                "POST",
                "/internal/tools/call",
                {"tool_id": "text.summary_stats", "args": {"text": 1}, **self.tenant},
            ),
        }
        for name, request in made.items():
            response = await self.ask(*request)
            assert response.status_code not in {401, 403, 404}, response.text
            self.made[name] = response.json().get("id")
        sent = {"sender_id": f"user:{self.name}", "text": f"secret of {self.name}"}
        channel = f"{MESSAGING}/channels/{self.made['channel']}"
        assert (await self.ask("POST", f"{channel}/messages", sent)).status_code == 201
        run = {
            "agent_id": self.tenant["agent_id"],
            "entrypoint": "direct",
            "payload": {"text": "x", "microdao_id": self.tenant["microdao_id"]},
        }
        response = await self.ask("POST", "/internal/agent-runtime/invocations", run, wait="false")
        assert response.status_code == 202, response.text
        self.made["run"] = response.json()["run_id"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def database(postgres):
    await copy_database(postgres, TEMPLATE, "two_principals")
    return postgres.urls_of("two_principals")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sides(database, tmp_path_factory):
    access = fixed_access(
        "internal-secret", principals=PRINCIPALS, keys={key: name for name, key in KEYS.items()}
    )
    agents = {f"agent:{name}": Blueprint(id=f"agent:{name}", **AGENT) for name in NAMES}
    folder = tmp_path_factory.mktemp("surface")
    async with surface(
        database.service, access, RecordedEvents(), folder, blueprints=agents
    ) as client:
        made = [Side(name, client) for name in NAMES]
        for side in made:
            await side.make()
        yield made


def listings(side):
    """Every list and every object of the other side, by the id that it has."""
    made = side.made
    channel = f"{MESSAGING}/channels/{made['channel']}"
    return [
        *(f"{channel}{part}" for part in ("", "/messages", "/events", "/invocations")),
        f"{LLM}/batch/{made['batch']}",
        f"{LLM}/batch/{made['batch']}/items",
        f"{RUNS}/{made['run']}",
    ]


OF_AGENTS = {f"{MEMORY}/items", f"{LLM}/usage", RUNS, "/internal/tools/calls"}
LISTS = [
    f"{MESSAGING}/channels", f"{MESSAGING}/projects", f"{MESSAGING}/follow-ups", f"{MEMORY}/items",
    f"{LLM}/batch", f"{LLM}/usage", RUNS, "/internal/tools/calls",
]  # fmt: skip


async def test_what_the_other_side_made_is_not_found_and_cannot_be_named(sides):
    for own, other in (sides, reversed(sides)):
        for path in listings(other):
            assert (await own.ask("GET", path)).status_code == 404, path
            named = await own.ask("GET", path, microdao_id=other.tenant["microdao_id"])
            assert named.status_code == 403, path


async def test_lists_hold_ones_own_alone(sides):
    for own, other in (sides, reversed(sides)):
        for path in LISTS:
            # The key acts as several ids: where a list is an agent's, it is told to name one.
            agent = {"agent_id": own.tenant["agent_id"]}
            answer = await own.ask("GET", path, **agent if path in OF_AGENTS else {})
            assert answer.status_code == 200, (path, answer.text)
            for secret in (f":{other.name}", *filter(None, other.made.values())):
                assert secret not in answer.text, path
            foreign = await own.ask("GET", path, microdao_id=other.tenant["microdao_id"])
            assert foreign.status_code == 403, path


async def test_lists_of_agents_and_tools_hold_what_a_key_may_use(sides):
    own, other = sides
    listed = (await own.ask("GET", "/internal/agent-runtime/agents")).json()["agents"]
    assert [agent["id"] for agent in listed] == [own.tenant["agent_id"]]
    for side, status in ((own, 200), (other, 404)):
        assert (await side.ask("GET", "/internal/tools/projects.list")).status_code == status


async def test_a_foreign_agent_or_sender_is_refused_by_name(sides):
    own, other = sides
    asked = {"query": "secret", **own.tenant}
    found = await own.ask("POST", f"{MEMORY}/query", asked)
    assert "secret of ours" in found.text
    for name, value in other.tenant.items():
        refused = await own.ask("POST", f"{MEMORY}/query", {**asked, name: value})
        assert refused.status_code == 403
        assert f"`{value}`" in refused.json()["error"]["message"]
    channel = f"{MESSAGING}/channels/{own.made['channel']}/messages"
    refused = await own.ask("POST", channel, {"sender_id": "user:theirs", "text": "x"})
    assert refused.status_code == 403


async def test_row_security_shows_a_tenant_no_foreign_row(sides, database):
    """Every table with a microDAO, as the services' role reads it for one."""
    ours, theirs = (side.tenant["microdao_id"] for side in sides)
    async with await psycopg.AsyncConnection.connect(database.owner) as owner:
        rows = await owner.execute(
            "SELECT relname, relrowsecurity FROM pg_class"
            " JOIN pg_attribute ON attrelid = pg_class.oid"
            " WHERE attname = 'microdao_id' AND relkind IN ('r', 'p') AND NOT relispartition"
            "   AND relnamespace = current_schema()::regnamespace"
        )
        tables = dict(await rows.fetchall())
    assert {name for name, secured in tables.items() if not secured} == LEDGERS
    filled = set()
    async with await psycopg.AsyncConnection.connect(database.service) as connection:
        await connection.execute("SELECT set_config('daarion.microdao_id', %s, true)", (ours,))
        await connection.execute(
            "SELECT set_config('daarion.agent_id', %s, true)", (sides[0].tenant["agent_id"],)
        )
        for table in tables:
            try:
                async with connection.transaction():
                    found = await connection.execute(
                        sql.SQL("SELECT DISTINCT microdao_id FROM {}").format(sql.Identifier(table))
                    )
                    seen = {name for (name,) in await found.fetchall()}
            except psycopg.errors.InsufficientPrivilege:
                continue
            assert theirs not in seen or table in LEDGERS, table
            if ours in seen:
                filled.add(table)
    assert {"agent_runs", "channels", "channel_messages", "llm_batches"} <= filled


LEDGERS = {"llm_usage", "llm_attempts", "audit_log"}
"""They hold names and numbers of all tenants, no contents; only operators read across tenants."""
