"""Calls that our own policy allows, and an outside policy service decides about."""

import pytest

from contracts.access.principals import Grants, Principal, acting_as
from contracts.tools.ledger import CallFilter
from tests.support.policy_server import AWAY, PERMIT, policy_client, policy_server
from tests.support.tools.routes import body
from tests.support.tools.toolcore import AGENT, client, replica, tool

TOOLS = (tool("test.echo"), tool("test.write", effect="write"), tool("test.own", allowed_agents=[]))
DENY = (200, {"effect": "deny", "reason": "quarantined"})


@pytest.fixture
async def policies():
    async with policy_server() as running:
        yield running


@pytest.fixture
async def here(database_url, policies):
    async with (
        policy_client(policies, cache_s=0, timeout_s=20) as outside,
        replica(database_url, *TOOLS, outside=outside) as running,
    ):
        running.outside = outside
        yield running


async def test_a_permitted_call_runs_and_the_service_knows_who_wants_what(here, policies):
    caller = Principal("sofia-bot", Grants(agents=["*"], microdaos=["*"]), "sofia-bot")
    with acting_as(caller):
        answer = await here.call("test__echo")
    assert answer.result.ok
    [asked] = policies.asked
    assert asked["actor"]["actor_id"] == "sofia-bot"
    assert (asked["action"], asked["resource"]) == (
        "exec_tool",
        {"type": "tool", "id": "test.echo"},
    )
    assert asked["context"] == AGENT


@pytest.mark.parametrize("tool_id", ["test.echo", "test.write"])
async def test_a_denied_call_never_runs_and_is_recorded_with_the_rule(here, policies, tool_id):
    policies.answer = DENY
    async with client(here.toolcore, here.events) as http:
        answer = await http.post("/call", json=body(tool_id))
    assert answer.status_code == 403
    refusal = answer.json()
    assert (refusal["error_kind"], refusal["retryable"]) == ("denied", False)
    assert refusal["error"] == "the policy service denies this: quarantined"
    assert refusal["details"] == {"rule": "policy_service"}
    assert here.executor.seen == []
    [event] = here.events.named("tools.refused")
    assert (event["tool_id"], event["rule"]) == (tool_id, "policy_service")
    page = await here.toolcore.audit.calls(CallFilter(microdao_id=AGENT["microdao_id"]))
    assert [(call.tool_id, call.rule, call.error_kind) for call in page.calls] == [
        (tool_id, "policy_service", "denied")
    ]


async def test_what_our_own_policy_refuses_is_not_asked_about(here, policies):
    for tool_id in ("test.own", "test.unknown"):
        assert not (await here.call(tool_id)).result.ok
    assert not (await here.call(args={"microdao_id": "microdao:8"})).result.ok
    assert policies.asked == []


async def test_a_service_without_a_decision_denies_for_now_unless_configured_otherwise(here):
    away = here.outside.settings.model_copy(update={"url": AWAY})
    here.outside.settings = away
    refusal = (await here.call()).result
    assert (refusal.error_kind, refusal.retryable) == ("denied", True)
    assert here.executor.seen == []
    here.outside.settings = away.model_copy(update={"on_failure": "allow"})
    assert (await here.call()).result.ok
    here.outside.settings = None
    assert (await here.call()).result.ok


async def test_a_recorded_result_is_not_given_to_whom_the_service_denies_it_now(here, policies):
    assert (await here.call("test.write", call_id="once")).result.ok
    policies.answer = DENY
    assert (await here.call("test.write", call_id="once")).result.error_kind == "denied"
    policies.answer = PERMIT
    assert (await here.call("test.write", call_id="once")).result.replayed
    assert len(here.executor.seen) == 1


async def test_a_dry_run_says_what_the_service_decides(here, policies):
    policies.answer = DENY
    async with client(here.toolcore, here.events) as http:
        answer = await http.post("/call", json=body(), params={"dry_run": "true"})
    assert answer.json()["decision"]["rule"] == "policy_service"
