"""Principal × route × tenant: every route that exists, asked by every kind of caller.

The routes come from the routers themselves: one without an entry here fails the test.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from fastapi.routing import APIRoute

from backends.access.audit import PostgresAudit
from backends.postgres.pool import Database
from contracts.access.audit import AuditQuery
from contracts.access.principals import Grants
from interfaces.http.graph.openapi import documented_routers
from services.access.audit import AuditTrail
from tests.conftest import TEMPLATE, copy_database
from tests.support.access import fixed_access
from tests.support.events import RecordedEvents
from tests.support.graph.surface import PREFIXES, surface

pytestmark = pytest.mark.asyncio(loop_scope="module")

AGENT, MICRODAO = "agent:own", "microdao:own"
OWN = (AGENT, MICRODAO)
SIBLING = ("agent:sibling", MICRODAO)
FOREIGN = (AGENT, "microdao:foreign")
TENANTS = {"own": OWN, "sibling": SIBLING, "foreign": FOREIGN}
INTERNAL, OPERATOR = "internal-secret-of-tests", "operator-secret-of-tests"
KEYS = {name: f"dk_{name}".ljust(46, "x") for name in ("own", "many", "elsewhere", "limited")}
ACTS = {"agents": [AGENT], "microdaos": [MICRODAO]}
PRINCIPALS = {
    "own": Grants(kind="agent", **ACTS),
    "many": Grants(agents=[AGENT, "agent:own-*"], microdaos=[MICRODAO, "microdao:own-*"]),
    "elsewhere": Grants(applications=[], **ACTS),
    "limited": Grants(models=["no-model"], tools=["no.tool"], **ACTS),
}
CALLERS = {"nobody": None, "internal": INTERNAL, "operator": OPERATOR, **KEYS}
DELEGATED = "delegated"
SOME_ID = str(uuid4())


@dataclass(frozen=True)
class Route:
    """How one route is asked.

    `who`: `open` to everybody, for `operators`, for `any` principal of the application, or `acting`
    for an agent (`by_agent`) in a microDAO. The tenant's ids stand where `{agent}` and `{microdao}`
    do.
    """

    who: str
    body: Any = None
    query: dict[str, str] = field(default_factory=dict)
    by_agent: bool = True
    kind: str = "json"
    uses: str | None = None
    """`model` or `tool`: what the body names is refused to a principal that may not use it."""
    for_agents: bool = True
    """Whether principals of kind `agent` may use it."""


TENANT = {"agent_id": "{agent}", "microdao_id": "{microdao}"}
IN = {"microdao_id": "{microdao}"}
DOCUMENT = {**IN, "path": "a.md"}
CHAT = {"model": "dagi-local-8b", "messages": [{"role": "user", "content": "x"}]}
OPEN, ANY, OPERATORS = Route("open"), Route("any"), Route("operators")
WRITING = Route("acting", query=DOCUMENT, by_agent=False, for_agents=False)
HEALTH = {
    f"GET {prefix}/{path}": OPEN
    for prefix in PREFIXES.values()
    for path in ("health", "health/live")
}
CHANNEL = "/internal/messaging/channels/{channel_id}"
TABLE = {
    **HEALTH,
    "POST /internal/llm/proxy": Route("acting", {**CHAT, "metadata": TENANT}, uses="model"),
    "POST /internal/llm/stream": Route("acting", {**CHAT, "metadata": TENANT}, uses="model"),
    "GET /internal/llm/models": ANY,
    "GET /internal/llm/usage": Route("acting", query=TENANT),
    "GET /internal/llm/limits": Route("acting", query=TENANT),
    "POST /internal/llm/v1/embeddings": Route(
        "acting", {"model": "hashing", "input": "x", "metadata": TENANT}, uses="model"
    ),
    "POST /internal/llm/v1/chat/completions": Route(
        "acting", {**CHAT, "metadata": TENANT}, uses="model"
    ),
    "GET /internal/llm/v1/models": ANY,
    "GET /internal/llm/v1/models/{model_id:path}": ANY,
    "POST /internal/llm/batch": Route(
        "acting", {"requests": [{**CHAT, "custom_id": "1", "metadata": TENANT}]}, uses="model"
    ),
    "GET /internal/llm/batch": Route("acting", query=IN, by_agent=False),
    "GET /internal/llm/batch/{batch_id}": Route("acting", query=IN, by_agent=False),
    "GET /internal/llm/batch/{batch_id}/items": Route("acting", query=IN, by_agent=False),
    "DELETE /internal/llm/batch/{batch_id}": Route("acting", query=IN, by_agent=False),
    "POST /internal/agent-memory/query": Route("acting", {**TENANT, "query": "x"}),
    "POST /internal/agent-memory/store": Route(
        "acting", {**TENANT, "kind": "conversation", "content": {"text": "x"}}
    ),
    "POST /internal/agent-memory/summarize": Route("acting", {**TENANT, "channel_id": "c"}),
    "GET /internal/agent-memory/items": Route("acting", query=TENANT),
    "DELETE /internal/agent-memory/items/{item_id}": Route("acting", query=TENANT),
    "GET /internal/agent-memory/stats": Route("acting", query=TENANT),
    "POST /internal/agent-memory/mcp": Route("acting", {"name": "list"}, kind="mcp"),
    "POST /internal/agent-memory/erase": OPERATORS,
    "GET /internal/agent-memory/export": OPERATORS,
    "POST /internal/agent-memory/import": OPERATORS,
    "POST /internal/agent-memory/kb/reindex": OPERATORS,
    "PUT /internal/agent-memory/documents": WRITING,
    "GET /internal/agent-memory/documents": Route("acting", query=IN, by_agent=False),
    "DELETE /internal/agent-memory/documents": WRITING,
    "POST /internal/tools/call": Route("acting", {**TENANT, "tool_id": "text.none"}, uses="tool"),
    "GET /internal/tools/calls": Route("acting", query=TENANT),
    "GET /internal/tools/results/{id}": Route("acting", query=IN, by_agent=False),
    "GET /internal/tools/approvals": OPERATORS,
    "POST /internal/tools/approvals/{call_id}": OPERATORS,
    "GET /internal/tools": Route("acting", query=TENANT),
    "GET /internal/tools/{tool_id}": ANY,
    "DELETE /internal/tools/{tool_id}": OPERATORS,
    "PUT /internal/tools/{tool_id}": OPERATORS,
    "POST /internal/tools/mcp": Route("acting", {"name": "text.none"}, kind="mcp", uses="tool"),
    "POST /internal/agent-runtime/invocations": Route(
        "acting",
        {"agent_id": "{agent}", "entrypoint": "direct", "payload": {**IN, "text": "x"}},
    ),
    "GET /internal/agent-runtime/agents": ANY,
    "GET /internal/agent-runtime/runs": Route("acting", query=TENANT),
    "GET /internal/agent-runtime/runs/{run_id}": Route("acting", query=IN, by_agent=False),
    "POST /internal/messaging/channels": Route("acting", {**IN, "name": "x"}, by_agent=False),
    "GET /internal/messaging/channels": Route("acting", query=IN, by_agent=False),
    f"GET {CHANNEL}": Route("acting", query=IN, by_agent=False),
    f"POST {CHANNEL}/members": Route("acting", {"member_id": "user:1"}, IN, by_agent=False),
    f"DELETE {CHANNEL}/members/{{member_id}}": Route("acting", query=IN, by_agent=False),
    f"POST {CHANNEL}/messages": Route("acting", {"sender_id": "{agent}", "text": "x"}, IN),
    f"GET {CHANNEL}/messages": Route("acting", query=IN, by_agent=False),
    "POST /internal/messaging/agents/{agent_id}/post-to-channel": Route(
        "acting", {"channel_id": SOME_ID, "text": "x"}, IN
    ),
    f"GET {CHANNEL}/events": Route("acting", query=IN, by_agent=False),
    f"POST {CHANNEL}/run-steps": Route(
        "acting",
        {"agent_id": "{agent}", "run_id": "r", "steps": [{"index": 0, "kind": "llm"}]},
        IN,
    ),
    f"GET {CHANNEL}/invocations": Route("acting", query=IN, by_agent=False),
    "POST /internal/messaging/projects": Route("acting", {**IN, "name": "x"}, by_agent=False),
    "GET /internal/messaging/projects": Route("acting", query=IN, by_agent=False),
    "GET /internal/messaging/follow-ups": Route("acting", query=IN, by_agent=False),
    "POST /internal/messaging/tools/projects.list": Route(
        "acting", {"args": {}, "context": TENANT}
    ),
    "POST /internal/messaging/tools/followups.create": Route(
        "acting", {"args": {"title": "x"}, "context": TENANT}
    ),
    "GET /": OPEN,
    "GET /docs": OPEN,
    "GET /openapi.json": OPEN,
    "GET /internal/access/me": ANY,
    "GET /internal/access/audit": OPERATORS,
    "GET /internal/access/principals": OPERATORS,
    "GET /internal/access/principals/{name}": OPERATORS,
    "PUT /internal/access/principals/{name}": OPERATORS,
    "DELETE /internal/access/principals/{name}": OPERATORS,
    "POST /internal/access/principals/{name}/keys": OPERATORS,
    "POST /internal/access/principals/{name}/rotate": OPERATORS,
    "DELETE /internal/access/principals/{name}/keys/{key_id}": OPERATORS,
}


def routes() -> set[str]:
    """Every method and path of the surface."""
    prefixes = {name: prefix for name, prefix in PREFIXES.items() if name != "root"}
    return {
        f"{method} {prefix.rstrip('/')}{route.path}"
        for prefix, router in documented_routers(prefixes).values()
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }


async def test_every_route_has_an_entry_and_every_entry_a_route():
    assert routes() == TABLE.keys()


@pytest.fixture(scope="module")
def access():
    return fixed_access(
        INTERNAL,
        OPERATOR,
        principals=PRINCIPALS,
        keys={key: name for name, key in KEYS.items()},
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(access, postgres, tmp_path_factory):
    await copy_database(postgres, TEMPLATE, "access_table")
    url, folder = postgres.urls_of("access_table").service, tmp_path_factory.mktemp("surface")
    database, events = Database(url, events=RecordedEvents()), RecordedEvents()
    await database.open()
    access.audit = AuditTrail(PostgresAudit(database), events, lambda: None)
    async with surface(url, access, events, folder) as client:
        yield client
    await database.close()


def filled(value: Any, agent: str, microdao: str) -> Any:
    text = json.dumps(value).replace("{agent}", agent).replace("{microdao}", microdao)
    return json.loads(text)


async def ask(client, name: str, credential: str | None, tenant: tuple[str, str]) -> Any:
    """Returns the status, or for MCP the kind of its answer's error."""
    route, (method, path) = TABLE[name], name.split(" ")
    path = path.replace("{agent_id}", tenant[0]).replace("{model_id:path}", "dagi-local-8b")
    path = path.replace("{name}", "nobody").replace("{tool_id}", "projects.list")
    for given in ("channel_id", "batch_id", "item_id", "run_id", "id", "key_id", "call_id"):
        path = path.replace(f"{{{given}}}", SOME_ID)
    path = path.replace("{member_id}", "user:1")
    headers = {"Authorization": f"Bearer {credential}"} if credential else {}
    if route.kind == "mcp":
        return await ask_mcp(client, path, headers, tenant, route.body)
    with contextlib.suppress(KeyError):
        headers["Content-Type"] = {"POST": "application/json", "PUT": "application/json"}[method]
    response = await client.request(
        method,
        path,
        params=filled(route.query, *tenant),
        content=json.dumps(filled(route.body or {}, *tenant))
        if method in {"POST", "PUT"}
        else None,
        headers=headers,
    )
    return response.status_code


async def ask_mcp(client, path, headers, tenant, call) -> int:
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
    response = await client.post(
        path,
        json=message,
        headers={
            **headers,
            "Accept": "application/json, text/event-stream",
            "X-Agent-Id": tenant[0],
            "X-Microdao-Id": tenant[1],
        },
    )
    if response.status_code != 200:
        return response.status_code
    result = response.json()["result"]
    answer = json.loads(result["content"][0]["text"])
    kind = answer.get("error_kind") or answer.get("error", {}).get("type")
    return 403 if kind in {"denied", "forbidden"} else 404 if result.get("isError") else 200


def expected(name: str, caller: str, tenant: str) -> set[int] | None:
    """The refusal of a cell, None where the caller is let through."""
    route = TABLE[name]
    if route.who == "open":
        return None
    if caller == "nobody":
        return {401}
    if route.who == "operators":
        return None if caller == "operator" else {403}
    if caller in {"internal", "operator"}:
        return None
    if caller == "elsewhere" and not name.split(" ")[1].startswith("/internal/access"):
        return {403}
    if route.who == "any":
        return None
    if caller in {"own", DELEGATED} and not route.for_agents:
        return {403}
    if caller == "limited" and route.uses:
        return {403}
    if tenant == "foreign" or (tenant == "sibling" and route.by_agent):
        return {403}
    return None


@pytest.mark.parametrize("name", sorted(name for name in TABLE if TABLE[name].who == "operators"))
@pytest.mark.parametrize("spelling", ["{}%0A", "{}/", "{}//", "{}%00", "{}%0D", "/{}", "{}%2F"])
async def test_another_spelling_of_an_operators_route_is_no_way_in(client, access, name, spelling):
    method, path = name.split(" ")
    path = re.sub(r"\{.*?\}", SOME_ID, path)
    response = await client.request(
        method,
        spelling.format(path),
        content="{}" if method in {"POST", "PUT"} else None,
        headers={"Authorization": f"Bearer {KEYS['own']}", "Content-Type": "application/json"},
    )
    assert response.status_code in {403, 404}


@pytest.mark.parametrize("name", sorted(TABLE))
async def test_each_caller_reaches_what_it_may_and_nothing_else(client, access, name):
    wrong = []
    run = access.directory.named("own")
    delegation = access.delegations.token(run)
    for caller, credential in {**CALLERS, DELEGATED: delegation}.items():
        for tenant, ids in TENANTS.items():
            status = await ask(client, name, credential, ids)
            refusal = expected(name, caller, tenant)
            passed = status not in {401, 403, 429} if refusal is None else status in refusal
            if not passed:
                wrong.append((caller, tenant, status, refusal))
    assert wrong == []


async def test_every_action_of_an_operator_is_recorded_before_it_is_served(client, access):
    """Reads are not, except exports; the reason why a request fails makes no difference."""
    expected = {}
    for number, name in enumerate(name for name in TABLE if TABLE[name].who == "operators"):
        (method, path), request_id = name.split(" "), f"audit-{number}"
        if method != "GET" or path.endswith("/export"):
            expected[request_id] = name
        headers = {"X-Internal-Secret": OPERATOR, "x-request-id": request_id}
        await client.request(method, re.sub(r"\{.*?\}", "x", path), headers=headers)
    await access.audit.flush()
    rows = (await access.audit.store.page(AuditQuery(limit=200))).items
    outcomes = {
        (row.request_id, row.outcome)
        for row in rows
        if row.request_id.startswith("audit-") and row.principal == "operator"
    }
    assert {request_id for request_id, outcome in outcomes if outcome == "started"} == set(expected)
    assert len(outcomes) == 2 * len(expected) > 16  # each has an end


BY_QUERY = sorted(
    name
    for name, route in TABLE.items()
    if route.who == "acting" and name.startswith(("GET", "DELETE"))
)


@pytest.mark.parametrize("name", BY_QUERY)
async def test_without_a_tenant_a_key_sees_its_own_or_is_told_to_name_one(client, name):
    """A key for one agent in one microDAO need not name them; one for several must."""
    method, path = name.split(" ")
    for given in ("channel_id", "batch_id", "item_id", "run_id", "id"):
        path = path.replace(f"{{{given}}}", SOME_ID)
    path = path.replace("{member_id}", "user:1")
    query = {key: value for key, value in TABLE[name].query.items() if key not in TENANT}
    one = "own" if TABLE[name].for_agents else "limited"
    for caller, allowed in ((one, True), ("many", False)):
        response = await client.request(
            method, path, params=query, headers={"Authorization": f"Bearer {KEYS[caller]}"}
        )
        assert (response.status_code not in {400, 401, 403}) == allowed, (caller, response.text)
        if not allowed:
            assert "microdao_id" in response.text or "agent_id" in response.text
