"""Approval over a real ledger: what is shown is what runs, and for how long."""

from __future__ import annotations

import asyncio

import pytest

from backends.tools.ledger import LedgerLimits
from contracts.errors import Conflict
from contracts.tools.api import Outcome
from services.tools.admin import ApprovalDecision
from tests.support.tools.toolcore import client, replica, tool


async def test_approval(database_url):
    async with (
        replica(database_url, tool(effect="write", requires_approval=True)) as here,
        client(here.toolcore, here.events) as http,
    ):
        first = await here.call(args={"to": "всі"}, call_id="ask")
        assert (first.executed, first.result.error_kind, first.result.retryable) == (
            False,
            "denied",
            True,
        )
        assert (await here.call(args={"to": "всі"}, call_id="ask")).result.error_kind == "denied"
        waiting = (await http.get("/approvals", params={"microdao_id": "microdao:7"})).json()[
            "calls"
        ]
        assert [(call["call_id"], call["args"]) for call in waiting] == [("ask", {"to": "всі"})]
        granted = await http.post(
            "/approvals/ask", json={"microdao_id": "microdao:7", "granted": True}
        )
        assert granted.status_code == 200
        assert (
            await http.post("/approvals/ask", json={"microdao_id": "microdao:7", "granted": False})
        ).status_code == 409
        changed = await here.call(args={"to": "інші"}, call_id="ask")
        assert changed.result.error_kind == "conflict"
        done, again = (
            await here.call(args={"to": "всі"}, call_id="ask"),
            await here.call(args={"to": "всі"}, call_id="ask"),
        )
        assert (done.result.ok, again.result.replayed) == (True, True)
        assert len(here.executor.seen) == 1
        await here.call(call_id="no")
        await here.toolcore.audit.decide(
            "no", ApprovalDecision(microdao_id="microdao:7", granted=False)
        )
        rejected = await here.call(call_id="no")
        assert (rejected.result.error_kind, rejected.result.retryable) == ("denied", False)
        page = await http.get("/calls", params={"microdao_id": "microdao:7"})
        assert "всі" not in page.text


async def grant(here, call_id):
    await here.toolcore.audit.decide(
        call_id, ApprovalDecision(microdao_id="microdao:7", granted=True)
    )


async def kept_contents(here):
    async with here.ledger._database.transaction(microdao_id="microdao:7") as connection:
        rows = await (await connection.execute("SELECT args, context FROM tool_calls")).fetchall()
    return [value for row in rows for value in (row["args"], row["context"]) if value is not None]


async def test_an_approval_shows_and_covers_all_that_runs(database_url):
    given = tool(effect="write", requires_approval=True)
    asked = {
        "args": {"to": "всі"},
        "call_id": "ask",
        "context": {"channel_id": "c1", "note": "приватне"},
    }
    async with replica(database_url, given) as here, client(here.toolcore, here.events) as http:
        await here.call(**asked)
        waiting = (await http.get("/approvals", params={"microdao_id": "microdao:7"})).json()[
            "calls"
        ][0]
        assert (waiting["args"], waiting["context"], waiting["tool_version"]) == (
            asked["args"],
            asked["context"],
            1,
        )
        await grant(here, "ask")
        changed = await here.call(**{**asked, "context": {"channel_id": "c1", "note": "інше"}})
        assert (changed.executed, changed.result.error_kind, changed.result.retryable) == (
            False,
            "conflict",
            False,
        )
        assert (await here.call(**asked)).result.ok
        seen = here.executor.seen[0].context
        assert {name: seen[name] for name in asked["context"]} == asked["context"]
        assert len(here.executor.seen) == 1
        assert await kept_contents(here) == []
        assert (
            "приватне" not in (await http.get("/calls", params={"microdao_id": "microdao:7"})).text
        )


async def test_a_tool_that_changes_after_its_approval_needs_another(database_url):
    given = tool(effect="write", requires_approval=True)
    async with replica(database_url, given) as here, client(here.toolcore, here.events) as http:
        await here.call(call_id="ask")
        await grant(here, "ask")
        assert (
            await http.put("/test.echo", json={**given, "target": "http://127.0.0.1:9/other"})
        ).status_code == 200
        changed = await here.call(call_id="ask")
        assert (changed.result.error_kind, changed.result.details["rule"]) == (
            "conflict",
            "approval",
        )
        assert here.executor.seen == []
        await here.call(call_id="ask again")
        await grant(here, "ask again")
        done = await here.call(call_id="ask again")
        assert (done.result.ok, done.result.tool_version) == (True, 2)
        await http.put("/test.echo", json=given)
        assert (await here.call(call_id="ask again")).result.replayed is True


async def test_a_grant_ends_and_can_be_given_again(database_url):
    limits = LedgerLimits(approval_valid_s=0.2)
    async with replica(
        database_url, tool(effect="write", requires_approval=True), limits=limits
    ) as here:
        await here.call(call_id="ask")
        await grant(here, "ask")
        await asyncio.sleep(0.3)
        late = await here.call(call_id="ask")
        assert (late.executed, late.result.error_kind, late.result.retryable) == (
            False,
            "denied",
            True,
        )
        here.ledger.reconfigure(LedgerLimits(approval_valid_s=600))
        await grant(here, "ask")
        with pytest.raises(Conflict):
            await grant(here, "ask")
        assert (await here.call(call_id="ask")).result.ok


async def test_a_passing_failure_runs_again_only_while_its_approval_lasts(database_url):
    outcomes = iter([Outcome(ok=False, error_kind="unavailable", error="away", retryable=True)])
    given = tool(effect="write", requires_approval=True)
    limits = LedgerLimits(approval_valid_s=600)
    async with replica(
        database_url, given, script=lambda _: next(outcomes, {"done": True}), limits=limits
    ) as here:
        await here.call(call_id="ask", context={"a": 1})
        await grant(here, "ask")
        assert (await here.call(call_id="ask", context={"a": 1})).result.error_kind == "unavailable"
        changed = await here.call(call_id="ask", context={"a": 2})
        assert changed.result.details["rule"] == "approval"
        assert (await here.call(call_id="ask", context={"a": 1})).result.ok


async def test_a_call_from_before_its_tool_needed_approval_does_not_run_again_without(database_url):
    outcomes = iter([Outcome(ok=False, error_kind="unavailable", error="away", retryable=True)])
    given = tool(effect="write")
    async with (
        replica(database_url, given, script=lambda _: next(outcomes, {"done": True})) as here,
        client(here.toolcore, here.events) as http,
    ):
        await here.call(call_id="before")
        await http.put("/test.echo", json={**given, "requires_approval": True})
        assert (await here.call(call_id="before")).result.error_kind == "conflict"
        assert len(here.executor.seen) == 1
