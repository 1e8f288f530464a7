"""Tool calls that policy refuses are in the audit trail, whichever way they come."""

import httpx
import pytest

from contracts.access.principals import Grants, Principal, acting_as
from contracts.errors import Conflict
from interfaces.mcp.tools import ToolMcpServer
from services.access.audit import AuditTrail
from services.tools.admin import ApprovalDecision
from tests.support.tools.toolcore import PREFIX, asgi, replica, tool
from tests.support.uvicorn_server import served

GRANTS = Grants(agents=["agent:sofia", "agent:pm"], microdaos=["microdao:7"], tools=["test.*"])
TARAS = Principal("taras", GRANTS, "taras")
TOOLS = (
    tool("test.private", allowed_agents=["agent:pm"]),
    tool("test.asks", effect="write", requires_approval=True),
)


async def test_a_call_that_policy_refuses_is_noted_and_one_that_waits_is_not(database_url):
    noted = []
    async with replica(database_url, *TOOLS, note=noted.append) as here:
        with acting_as(TARAS):
            assert (await here.call("test.private")).result.error_kind == "denied"
            assert (await here.call("test.asks", call_id="c-1")).result.error_kind == "denied"
            assert (await here.call("test.none")).result.error_kind == "not_found"
            assert (await here.call("test.private", agent_id="agent:pm")).result.ok
    [denied] = noted
    assert denied.model_dump(exclude={"id"}) == {
        "principal": "taras",
        "action": "call",
        "object": "tools/test.private",
        "outcome": "denied",
        "request_id": "req-1",
        "microdao_id": "microdao:7",
        "agent_id": "agent:sofia",
        "count": 1,
    }


async def test_a_decision_about_a_call_is_noted_with_what_was_decided(database_url):
    noted = []
    async with replica(database_url, *TOOLS, note=noted.append) as here:
        for call_id, granted in (("c-1", True), ("c-2", False)):
            await here.call("test.asks", call_id=call_id)
            decision = ApprovalDecision(microdao_id="microdao:7", granted=granted)
            with acting_as(TARAS):
                await here.toolcore.audit.decide(call_id, decision)
                with pytest.raises(Conflict):
                    await here.toolcore.audit.decide(call_id, decision)
    assert [(row.principal, row.action, row.object, row.microdao_id) for row in noted] == [
        ("taras", "grant", "tools/approvals/c-1", "microdao:7"),
        ("taras", "reject", "tools/approvals/c-2", "microdao:7"),
    ]


async def test_what_mcp_refuses_to_a_principal_is_noted(database_url, events, monkeypatch):
    noted = []
    trail = AuditTrail(None, events, lambda: None)
    monkeypatch.setattr(trail, "note", noted.append)
    known = {"principals": {"taras": GRANTS}, "keys": {"dk_taras": "taras"}, "audit": trail}
    async with replica(database_url, *TOOLS) as here:
        server = ToolMcpServer(here.toolcore)
        await server.start()
        app = asgi(here.toolcore, here.events, internal="s3cret", mcp=server, **known)
        headers = {
            "Authorization": "Bearer dk_taras",
            "X-Agent-Id": "agent:sofia",
            "X-Microdao-Id": "microdao:9",
            "Accept": "application/json, text/event-stream",
        }
        async with served(app, root_path=PREFIX) as url, httpx.AsyncClient(headers=headers) as http:
            for method, params in (
                ("tools/list", {}),
                ("tools/call", {"name": "test.private", "arguments": {}}),
            ):
                body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
                answer = await http.post(f"{url}/mcp", json=body)
                assert "may not act in `microdao:9`" in answer.text
        await server.close()
    assert [
        (row.principal, row.action, row.object, row.outcome, row.microdao_id) for row in noted
    ] == [("taras", "POST", "tools/mcp", "denied", "microdao:9")] * 2
