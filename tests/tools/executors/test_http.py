"""The HTTP executor against a real server: what it sends, what it retries, what it refuses."""

import asyncio

import pytest

from common.http.retry_after import MAX_RETRY_AFTER_S
from configs.tools import ConfiguredSecrets, SecretSettings
from executors.http import connections
from executors.http.executor import MAX_ATTEMPTS, HttpToolExecutor
from executors.http.target_circuit import POLICY
from tests.support.llm.upstream.sockets import refused_port
from tests.support.otlp import tracing_to
from tests.support.tools.executions import definition, execution
from tests.support.tools.http_executor import LOOPBACK, SECRET, tool


async def test_a_call_carries_args_context_and_the_idempotency_key(server, executor):
    outcome = await executor.execute(execution(tool(server, "/ok"), {"status": "активний"}))
    assert outcome.ok
    assert outcome.result == [{"id": 1}]
    assert outcome.attempts == 1
    call = server.calls[0]
    assert call.body == {
        "args": {"status": "активний"},
        "context": {"agent_id": "agent:sofia", "microdao_id": "microdao:7", "call_id": "c-1"},
    }
    assert call.headers["idempotency-key"] == "microdao:7/c-1"
    assert call.headers["content-type"] == "application/json"


async def test_connections_are_kept_apart_for_reads_and_writes_and_shorter_for_writes(
    server, executor, monkeypatch
):
    monkeypatch.setattr(connections, "KEEPALIVE_S", 600)
    monkeypatch.setattr(connections, "CAREFUL_KEEPALIVE_S", 600)
    for _ in range(3):
        assert (await executor.execute(execution(tool(server, "/ok")))).ok
    assert server.connections == 1
    for _ in range(2):
        assert (await executor.execute(execution(tool(server, "/ok", effect="write")))).ok
    assert server.connections == 2
    await executor.close()
    await server.wait_closed()


async def test_a_connection_that_was_idle_is_not_used_for_a_write(server, executor, monkeypatch):
    assert (
        connections.CAREFUL_KEEPALIVE_S <= 1
    )  # common servers close after two seconds at the earliest
    monkeypatch.setattr(connections, "CAREFUL_KEEPALIVE_S", 0.05)
    for _ in range(2):
        assert (await executor.execute(execution(tool(server, "/ok", effect="write")))).ok
        await asyncio.sleep(0.1)
    assert server.connections == 2


async def test_a_write_does_not_meet_a_connection_that_its_server_has_closed(server, executor):
    for _ in range(100):
        outcome = await executor.execute(execution(tool(server, "/ok-and-close", effect="write")))
        assert outcome.ok, outcome
    assert len(server.calls) == 100


async def test_a_secret_is_sent_and_redacted_when_it_comes_back(server, executor, events):
    secret = {"name": "crm", "header": "X-Token", "prefix": "Token "}
    outcome = await executor.execute(execution(tool(server, "/echo", secrets=[secret])))
    assert server.calls[0].headers["x-token"] == f"Token {SECRET}"
    assert outcome.ok
    assert outcome.result["headers"]["x-token"] == "Token [redacted]"
    assert SECRET not in repr((outcome, events.events))


@pytest.mark.parametrize(
    "entry",
    [
        {"hosts": ["elsewhere.example"]},
        {"hosts": ["127.0.0.1"]},
        {"hosts": ["ingress"], "insecure": True},
    ],
)
async def test_a_secret_does_not_go_where_its_entry_does_not_say(server, events, entry):
    """Also for a tool that was registered before the entry was changed."""
    settings = SecretSettings.model_validate({"env": "CRM", "tools": ["test.*"], **entry})
    secrets = ConfiguredSecrets({"crm": settings}, {"CRM": SECRET}.get, "http://127.0.0.1:1")
    executor = HttpToolExecutor(secrets, events)
    outcome = await executor.execute(execution(tool(server, "/ok", secrets=[{"name": "crm"}])))
    assert (outcome.error_kind, outcome.attempts) == ("denied", 0)
    assert server.connections == 0
    await executor.close()


@pytest.mark.parametrize(
    "secret", [{"name": "absent"}, {"name": "broken"}, {"name": "crm", "header": "Host"}]
)
async def test_a_secret_that_cannot_be_sent_stops_the_call(server, executor, secret):
    outcome = await executor.execute(execution(tool(server, "/ok", secrets=[secret])))
    assert outcome.error_kind == "unavailable"
    assert server.calls == []


async def test_a_call_of_this_graph_carries_its_agent_and_no_secret_that_would_open_more(
    server, executor, events
):
    uses = [{"name": "crm", "header": name} for name in ("x-api-key", "X-Token")]
    own = HttpToolExecutor(
        executor._secrets,
        events,
        own_headers=lambda _url, _context: {"Authorization": "Bearer dd_x"},
    )
    outcome = await own.execute(execution(tool(server, "/echo", secrets=uses)))
    sent = server.calls[0].headers
    assert (sent["authorization"], SECRET in sent["x-token"]) == ("Bearer dd_x", True)
    assert "x-api-key" not in sent
    assert outcome.result["headers"]["authorization"] == "[redacted]"
    await own.close()


async def test_only_a_call_of_this_graph_carries_the_trace(
    server, executor, events, collector, monkeypatch
):
    own = HttpToolExecutor(
        executor._secrets, events, own_headers=lambda _url, _context: {"X-Agent": "own"}
    )
    with tracing_to(collector, monkeypatch) as tracing, tracing.span("call") as span:
        await own.execute(execution(tool(server, "/ok")))
        await executor.execute(execution(tool(server, "/ok")))
        trace_id = tracing.trace_id_of(span)
    ours, foreign = (call.headers for call in server.calls)
    assert ours["traceparent"].split("-")[1] == trace_id
    assert "traceparent" not in foreign
    await own.close()


async def test_a_secret_that_is_not_required_may_be_missing(server, executor):
    assert (
        await executor.execute(
            execution(tool(server, "/ok", secrets=[{"name": "absent", "required": False}]))
        )
    ).ok
    assert "authorization" not in server.calls[0].headers


@pytest.mark.parametrize("status", [429, 502, 503, 504])
@pytest.mark.parametrize("effect", ["read", "idempotent"])
async def test_transient_answers_are_retried_with_the_same_key(server, executor, status, effect):
    server.statuses = [(status, {"Retry-After": "0"})] * (MAX_ATTEMPTS - 1)
    outcome = await executor.execute(execution(tool(server, "/ok", effect=effect)))
    assert outcome.ok
    assert outcome.attempts == MAX_ATTEMPTS == len(server.calls)
    assert len({call.headers["idempotency-key"] for call in server.calls}) == 1


async def test_attempts_are_bounded(server, executor):
    server.statuses = [(503, {"Retry-After": "0"})] * 10
    outcome = await executor.execute(execution(tool(server, "/ok")))
    assert (outcome.error_kind, outcome.retryable, outcome.attempts) == (
        "unavailable",
        True,
        MAX_ATTEMPTS,
    )
    assert len(server.calls) == MAX_ATTEMPTS


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_write_is_sent_once(server, executor, status):
    server.statuses = [(status, {"Retry-After": "0"})]
    outcome = await executor.execute(execution(tool(server, "/ok", effect="write")))
    assert not outcome.ok
    assert outcome.effect_possible is (status != 429)
    assert len(server.calls) == 1


async def test_a_retry_after_beyond_the_deadline_ends_the_call_at_once(server, executor):
    server.statuses = [(503, {"Retry-After": "300"})]
    async with asyncio.timeout(30):
        outcome = await executor.execute(execution(tool(server, "/ok"), timeout_s=60))
    assert outcome.details == {"retry_after_s": 300}
    assert outcome.attempts == 1


@pytest.mark.parametrize(
    ("asked", "details"),
    [
        ("Fri, 31 Dec 9999 23:59:59 GMT", {"retry_after_s": MAX_RETRY_AFTER_S}),
        ("Fri, 31 Dec 9999 23:59:59 +99999999999999999999", {}),
        ("Fri, 31 Dec 99999999999999999999 23:59:59 GMT", {}),
        ("when it suits me", {}),
    ],
)
async def test_a_retry_after_beyond_reason_is_the_servers_fault(server, executor, asked, details):
    server.statuses = [(503, {"Retry-After": asked})]
    outcome = await executor.execute(execution(tool(server, "/ok", effect="write")))
    assert (outcome.error_kind, outcome.retryable, outcome.details) == (
        "unavailable",
        True,
        details,
    )


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_args"),
        (401, "upstream"),
        (403, "denied"),
        (404, "not_found"),
        (409, "conflict"),
        (500, "upstream"),
    ],
)
async def test_other_statuses_are_verdicts(server, executor, status, kind):
    server.statuses = [(status, {})]
    outcome = await executor.execute(execution(tool(server, "/ok", effect="idempotent")))
    assert (outcome.error_kind, outcome.retryable) == (kind, False)
    assert outcome.effect_possible is (status >= 500)
    assert len(server.calls) == 1


async def test_the_servers_reason_is_quoted_only_where_it_judged_the_call(server, executor):
    refused = await executor.execute(execution(tool(server, "/refused")))
    assert refused.error is not None
    assert refused.error.endswith("HTTP 422: due_date lies in the past")
    defect = await executor.execute(execution(tool(server, "/defect")))
    assert defect.error == "the tool's server answered HTTP 500"


async def test_a_dropped_connection_is_retried_for_reads_alone(server, executor):
    assert (await executor.execute(execution(tool(server, "/hang-up-once")))).attempts == 2
    outcome = await executor.execute(execution(tool(server, "/hang-up", effect="write")))
    assert (outcome.error_kind, outcome.attempts, outcome.effect_possible) == ("upstream", 1, True)


async def test_a_refused_connection_leaves_no_doubt_about_the_effect(executor):
    with refused_port() as port:
        outcome = await executor.execute(
            execution(definition(f"http://127.0.0.1:{port}/x", egress=LOOPBACK, effect="write"))
        )
    assert (outcome.error_kind, outcome.retryable, outcome.effect_possible, outcome.attempts) == (
        "unavailable",
        True,
        False,
        1,
    )
    assert outcome.error is not None
    assert "127.0.0.1" not in outcome.error


async def test_the_circuit_opens_and_calls_nobody(server, executor):
    broken = tool(server, "/defect")
    for _ in range(POLICY.failures):
        await executor.execute(execution(broken))
    outcome = await executor.execute(execution(broken))
    assert (outcome.error_kind, outcome.retryable, outcome.attempts) == ("unavailable", True, 0)
    assert outcome.details["retry_after_s"] > 0
    assert len(server.calls) == POLICY.failures
    assert (await executor.execute(execution(tool(server, "/ok")))).ok


async def test_cookies_and_redirects_and_proxies_are_ignored(server, executor, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert (await executor.execute(execution(tool(server, "/cookie")))).result == 1
    outcome = await executor.execute(execution(tool(server, "/redirect")))
    assert outcome.error_kind == "upstream"
    assert [call.path for call in server.calls] == ["/cookie", "/redirect"]
    assert "cookie" not in server.calls[1].headers


async def test_arguments_without_a_json_form_are_refused(server, executor):
    for value in (2**70, "\ud800"):
        outcome = await executor.execute(execution(tool(server, "/ok"), {"value": value}))
        assert outcome.error_kind == "invalid_args"
    assert server.calls == []
