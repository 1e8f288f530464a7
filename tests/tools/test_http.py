"""The routes of Toolcore over a real registry and ledger."""

from __future__ import annotations

import pytest

from contracts.tools.api import Outcome
from tests.support.tools.routes import STRICT, body
from tests.support.tools.toolcore import AGENT


async def test_lists_what_an_agent_may_call(served):
    _, http = served
    for path in ("", "/"):
        answer = await http.get(path, params={"agent_id": "agent:sofia"})
        assert answer.status_code == 200
        assert [entry["id"] for entry in answer.json()["tools"]] == [
            "test.echo",
            "test.list",
            "test.strict",
        ]
    everything = (await http.get("")).json()["tools"]
    assert "test.private" in [entry["id"] for entry in everything]
    assert everything[0]["version"] == 1


async def test_lists_as_llm_tool_definitions_with_names_mapped_both_ways(served):
    _, http = served
    tools = (await http.get("", params={"agent_id": "agent:sofia", "format": "openai"})).json()[
        "tools"
    ]
    assert tools[0]["function"]["name"] == "test__echo"
    assert tools[2]["function"]["parameters"] == STRICT
    answer = await http.post("/call", json=body("test__echo", args={"a": 1}))
    assert answer.json()["result"] == {"args": {"a": 1}}
    assert answer.json()["tool_id"] == "test.echo"


async def test_call_answers_as_in_the_contract(served):
    here, http = served
    answer = await http.post(
        "/call",
        json=body(
            args={"text": "привіт"}, context={"agent_id": "agent:forged", "channel_id": "c1"}
        ),
    )
    assert answer.status_code == 200
    assert answer.json()["ok"] is True
    assert answer.json()["result"] == {"args": {"text": "привіт"}}
    assert answer.json()["duration_ms"] > 0
    context = here.executor.seen[0].context
    assert context == {**AGENT, "channel_id": "c1", "call_id": answer.json()["call_id"]}


@pytest.mark.parametrize(
    ("request_body", "status", "kind"),
    [
        (body("test.nothing"), 404, "not_found"),
        (body("test.private"), 403, "denied"),
        (body(args={"microdao_id": "microdao:8"}), 403, "denied"),
        (body("test.strict", args={}), 422, "invalid_args"),
        (body("test.strict", args={"limit": "x"}), 422, "invalid_args"),
        (body("test.strict", args={"limit": 1, "y": 2}), 422, "invalid_args"),
        (body(args=[1]), 422, "invalid_args"),
        (body(args="text"), 422, "invalid_args"),
        (body(args=None), 422, "invalid_args"),
        ({"tool_id": "test.echo"}, 422, "invalid_args"),
        ([], 422, "invalid_args"),
        (body(args={"x": "y" * 300_000}), 422, "invalid_args"),
        (body(args={"x": 2**70}), 422, "invalid_args"),
        (body(unknown=1), 422, "invalid_args"),
    ],
)
async def test_refusals_have_their_own_body(served, request_body, status, kind):
    here, http = served
    answer = await http.post("/call", json=request_body)
    assert answer.status_code == status
    result = answer.json()
    assert (result["ok"], result["error_kind"], result["retryable"]) == (False, kind, False)
    assert result["error"]
    assert result["request_id"]
    assert here.executor.seen == []


async def test_bodies_that_are_no_json_or_endless(served):
    _, http = served
    for content, kind in (
        (b"{", "invalid_args"),
        (b"", "invalid_args"),
        (b"\xff", "invalid_args"),
        (b"x" * (3 << 20), "too_large"),
    ):
        answer = await http.post("/call", content=content)
        status = 413 if kind == "too_large" else 422
        assert (answer.status_code, answer.json()["error_kind"]) == (status, kind)
    deep = (
        b'{"tool_id":"test.echo","agent_id":"a","microdao_id":"m","args":'
        + b'{"a":' * 300
        + b"1"
        + b"}" * 301
    )
    answer = await http.post("/call", content=deep)
    assert (answer.status_code, answer.json()["error_kind"]) == (422, "invalid_args")


async def test_invalid_arguments_name_the_path_and_what_was_expected(served):
    _, http = served
    result = (await http.post("/call", json=body("test.strict", args={"limit": 0}))).json()
    assert result["details"] == {
        "rule": "input_schema",
        "path": "$.limit",
        "expected": "a number of at least 1",
    }
    assert result["error"] == "args.limit: expected a number of at least 1"


async def test_a_failed_call_is_200_with_the_same_body(served):
    here, http = served
    here.executor.script = lambda _: Outcome(
        ok=False, error_kind="upstream", error="the tool answered 500", effect_possible=True
    )
    answer = await http.post("/call", json=body())
    assert answer.status_code == 200
    assert answer.json()["ok"] is False
    assert answer.json()["error_kind"] == "upstream"


async def test_the_same_call_id_is_one_call(served):
    here, http = served
    first = await http.post("/call", json=body(call_id="c-1", args={"a": 1}))
    again = await http.post("/call", json=body(call_id="c-1", args={"a": 1}))
    other = await http.post("/call", json=body(call_id="c-1", args={"a": 2}))
    assert again.json()["result"] == first.json()["result"]
    assert again.json()["replayed"] is True
    assert (other.status_code, other.json()["error_kind"]) == (409, "conflict")
    assert len(here.executor.seen) == 1
    elsewhere = await http.post(
        "/call", json={**body(call_id="c-1", args={"a": 2}), "microdao_id": "microdao:8"}
    )
    assert elsewhere.status_code == 200


async def test_dry_run_returns_the_decision_and_calls_nothing(served):
    here, http = served
    planned = (
        await http.post("/call?dry_run=true", json=body(args={"a": 1}, context={"agent_id": "x"}))
    ).json()
    assert planned["decision"] == {"allowed": True, "rule": "default", "retryable": False}
    assert planned["request"]["target"] == "http://127.0.0.1:9/x"
    assert planned["request"]["body"]["context"]["agent_id"] == "agent:sofia"
    refused = (await http.post("/call?dry_run=true", json=body("test.private"))).json()
    assert (refused["ok"], refused["decision"]["rule"]) == (False, "allowed_agents")
    assert (await http.post("/call?dry_run=maybe", json=body())).status_code == 422
    assert here.executor.seen == []
    assert (await http.get("/calls", params={"microdao_id": "microdao:7"})).json()["calls"] == []


async def test_oversized_results_by_reference_with_a_valid_preview(served):
    here, http = served
    here.executor.script = lambda _: [f"рядок {n}" for n in range(5_000)]
    result = (await http.post("/call", json=body("test.list", call_id="big"))).json()
    assert result["truncated"] is True
    assert result["result"]
    assert all(isinstance(item, str) for item in result["result"])
    read, offset = [], 0
    while offset is not None:
        page = (
            await http.get(
                f"/results/{result['result_ref']['id']}",
                params={"microdao_id": "microdao:7", "offset": offset, "limit": 2_000},
            )
        ).json()
        read += page["result"]
        offset = page.get("next_offset")
    assert read == [f"рядок {n}" for n in range(5_000)]
    foreign = await http.get(
        f"/results/{result['result_ref']['id']}", params={"microdao_id": "microdao:8"}
    )
    assert foreign.status_code == 404
    replayed = (await http.post("/call", json=body("test.list", call_id="big"))).json()
    assert replayed["result"] == result["result"]
    assert replayed["result_ref"]["id"] == result["result_ref"]["id"]


async def test_results_that_break_their_schema_keep_the_reason(served):
    here, http = served
    here.executor.script = lambda _: {"error": "project-db is down"}
    result = (await http.post("/call", json=body("test.list"))).json()
    assert (result["ok"], result["error_kind"]) == (False, "invalid_result")
    assert result["details"]["path"] == "$"
    assert "project-db is down" in result["details"]["raw"]


async def test_the_audit_withholds_contents(served):
    _, http = served
    await http.post("/call", json=body(args={"secret": "лист"}, call_id="a-1"))
    await http.post("/call", json=body("test.private"))
    page = await http.get("/calls", params={"microdao_id": "microdao:7"})
    refused, done = page.json()["calls"]
    assert (done["call_id"], done["state"], done["ok"], done["tool_version"]) == (
        "a-1",
        "settled",
        True,
        1,
    )
    assert (refused["state"], refused["error_kind"], refused["rule"]) == (
        "refused",
        "denied",
        "allowed_agents",
    )
    assert {done["agent_id"], refused["agent_id"]} == {"agent:sofia"}
    ours = {"microdao_id": "microdao:7", "agent_id": "agent:sofia"}
    assert len((await http.get("/calls", params=ours)).json()["calls"]) == 2
    assert (await http.get("/calls", params={**ours, "agent_id": "agent:pm"})).json()["calls"] == []
    assert "лист" not in page.text
    assert (await http.get("/calls", params={"microdao_id": "microdao:8"})).json()["calls"] == []
    assert (await http.get("/calls")).status_code == 400


async def test_pages_of_the_audit(served):
    _, http = served
    for number in range(5):
        await http.post("/call", json=body(call_id=f"p-{number}"))
    seen, cursor = [], None
    while True:
        page = (
            await http.get(
                "/calls",
                params={
                    "microdao_id": "microdao:7",
                    "limit": 2,
                    **({"cursor": cursor} if cursor else {}),
                },
            )
        ).json()
        seen += [call["call_id"] for call in page["calls"]]
        cursor = page.get("next_cursor")
        if cursor is None:
            break
    assert seen == [f"p-{number}" for number in (4, 3, 2, 1, 0)]
