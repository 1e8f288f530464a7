"""The LLM proxy over HTTP: records, cancellation, credentials, load and limits around a call."""

import asyncio

import pytest

from tests.support.llm.limits import InProcessAuthority
from tests.support.llm.proxy import client_of, ingress_of, proxy_over
from tests.support.llm.proxy_http import BODY, assert_envelope, running
from tests.support.llm.upstream import ScriptedUpstream
from tests.support.uvicorn_server import served


async def test_one_event_and_one_record_a_call_without_contents():
    async with running() as (client, _, recorder):
        await client.post("/proxy", json=BODY, headers={"x-request-id": "req-42"})
        (call,) = recorder.events
        assert call["event"] == "llm.call"
        assert (
            call["request_id"],
            call["agent_id"],
            call["microdao_id"],
            call["logical_model"],
        ) == (
            "req-42",
            "agent:sofia",
            "microdao:7",
            "plain",
        )
        assert call["total_tokens"] > 0
        assert "столиця" not in str(recorder.events) + str(recorder.records)
        assert len(recorder.records) == 1


async def test_cancelling_a_call_stops_the_upstream_and_settles_it():
    async with (
        ScriptedUpstream() as upstream,
        proxy_over(upstream.base_url) as (proxy, recorder),
        client_of(proxy, recorder) as client,
    ):
        upstream.script("silence")
        call = asyncio.create_task(client.post("/proxy", json=BODY))
        await upstream.wait_for(requests=1)
        call.cancel()
        await upstream.wait_for(cancelled=1, timeout_s=30)
        assert recorder.records[-1].outcome == "cancelled"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"X-Internal-Secret": "wrong"}, 401),
        ({"X-Internal-Secret": "open sesame"}, 200),
        ({"Authorization": "Bearer open sesame"}, 200),
        ({"Authorization": "Basic open sesame"}, 401),
        ({"X-Internal-Secret": "boss"}, 200),
    ],
    ids=str,
)
async def test_credentials(headers, status):
    async with (
        ScriptedUpstream() as upstream,
        proxy_over(upstream.base_url) as (proxy, recorder),
        client_of(proxy, recorder, internal="open sesame", admin="boss") as client,
    ):
        assert (await client.post("/proxy", json=BODY, headers=headers)).status_code == status
        assert (await client.get("/health/live")).status_code == 200
        assert (await client.get("/health")).status_code == 503


async def test_presented_credentials_are_ignored_when_none_is_configured():
    async with running() as (client, _, _):
        assert (
            await client.post("/proxy", json=BODY, headers={"X-Internal-Secret": "whatever"})
        ).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nope", 404), ("GET", "/proxy", 405), ("DELETE", "/models", 405), ("GET", "/", 404)],
)
async def test_unknown_routes_answer_in_the_envelope(method, path, status):
    async with running() as (client, _, _):
        response = await client.request(method, path)
        assert response.status_code == status
        assert response.json()["error"]["type"] in {"not_found", "method_not_allowed"}


async def test_a_wrong_method_names_all_that_the_path_takes():
    async with running() as (client, _, _):
        for path, methods in (("/models", "GET"), ("/proxy", "POST")):
            response = await client.patch(path)
            assert (response.status_code, response.headers["Allow"]) == (405, methods)
            assert response.json()["error"]["message"].endswith(f"allowed: {methods}")


async def test_a_null_body_is_refused_as_null():
    async with running() as (client, _, _):
        response = await client.post(
            "/proxy", content=b"null", headers={"Content-Type": "application/json"}
        )
        assert_envelope(response, 400, "invalid_request", retryable=False)
        assert response.json()["error"]["message"] == "the body is null: send a JSON object"


async def test_a_trailing_slash_changes_nothing():
    async with running() as (client, _, _):
        assert (await client.post("/proxy/", json=BODY)).status_code == 200
        assert (await client.get("/models/")).status_code == 200


async def test_more_than_a_replica_may_take_is_refused_at_once():
    async with ScriptedUpstream() as upstream, proxy_over(upstream.base_url) as (proxy, recorder):
        upstream.script("silence")
        async with client_of(proxy, recorder, max_concurrent=2) as client:
            held = [asyncio.create_task(client.post("/proxy", json=BODY)) for _ in range(2)]
            await upstream.wait_for(requests=2)
            response = await client.post("/proxy", json=BODY)
            assert_envelope(response, 503, "overloaded", retryable=True)
            assert response.headers["Retry-After"] == "1"
            for call in held:
                call.cancel()
            await asyncio.wait(held)
            assert (await client.get("/models")).status_code == 200


async def test_a_limit_answers_429_with_retry_after():
    async with running(limit=2, source=InProcessAuthority()) as (client, upstream, _):
        statuses = [(await client.post("/proxy", json=BODY)).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        refused = await client.post("/stream", json=BODY)
        assert_envelope(refused, 429, "rate_limited", retryable=True)
        assert 1 <= int(refused.headers["Retry-After"]) <= 62
        assert upstream.total == 2


async def test_a_defect_is_a_500_without_its_text():
    async with proxy_over("http://127.0.0.1:9/v1") as (_proxy, recorder):

        class Broken:
            async def complete(self, *_):
                raise RuntimeError("secret detail")

        async with client_of(Broken(), recorder) as client:
            response = await client.post("/proxy", json=BODY)
            assert_envelope(response, 500, "internal", retryable=False)
            assert "secret detail" not in response.text
            assert recorder.events[-1]["event"] == "http.defect"


async def test_a_caller_that_leaves_in_the_middle_of_its_body_is_no_defect():
    async with ScriptedUpstream() as upstream, proxy_over(upstream.base_url) as (proxy, recorder):
        ingress = ingress_of(proxy, recorder)
        async with served(ingress) as url, asyncio.timeout(30):
            _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
            writer.write(
                b'POST /proxy HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{"model"'
            )
            while not ingress._slots.arriving:
                await asyncio.sleep(0.01)
            writer.close()
            while ingress._slots.arriving:
                await asyncio.sleep(0.01)
    assert recorder.events == []
