"""The foundation on the real graph: HAProxy, two proxy replicas, the vLLM engine, PostgreSQL, NATS, all started by the launcher."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import time
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from jsonschema import validate

from tests.support.graph import offline

pytestmark = [pytest.mark.graph, pytest.mark.timeout(420, func_only=True)]

CALLER = {"agent_id": "agent:sofia", "microdao_id": "microdao:7"}
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]


def body(model="dagi-local-8b", messages=FRANCE, **options):
    return {"model": model, "messages": messages, "metadata": CALLER, **options}


async def ask(client, **options):
    response = await client.post("/internal/llm/proxy", json=body(**options))
    assert response.status_code == 200, response.text
    return response.json()


async def until(condition, timeout_s=60.0):
    """Waits until `await condition()` returns something true, and returns it."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := await condition():
            return found
        await asyncio.sleep(0.2)
    raise AssertionError("did not come true in time")


async def engine_load(client):
    rows = (await client.get("/internal/llm/models")).json()["models"]
    return next(row["load"] for row in rows if row["provider"] == "local")


def test_until_it_was_ready_callers_were_told_to_retry(graph):
    answers = list(graph.while_starting)
    assert {answer.status_code for answer in answers} <= {200, 503}, [
        answer.text for answer in answers
    ]
    refused = [answer for answer in answers if answer.status_code == 503]
    assert refused
    for answer in refused:
        error = answer.json()["error"]
        assert (error["type"], error["retryable"], bool(error["request_id"])) == (
            "unavailable",
            True,
            True,
        ), answer.text
        assert int(answer.headers["Retry-After"]) >= 1


async def test_the_local_engine_answers(client):
    answer = await ask(client, temperature=0)
    assert "Paris" in answer["content"]
    assert (answer["provider"], answer["model_resolved"], answer["finish_reason"]) == (
        "local",
        "smollm2-135m-instruct",
        "stop",
    )
    assert (
        answer["usage"]["total_tokens"]
        == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]
    )


async def test_a_stream_of_the_engine_arrives_token_by_token(client):
    arrivals, names, text, last = [], [], "", {}
    async with client.stream(
        "POST", "/internal/llm/stream", json=body(max_tokens=40, temperature=0)
    ) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line.startswith("event:"):
                names.append(line)
            if line.startswith("data:"):
                arrivals.append(time.monotonic())
                last = json.loads(line[5:])
                text += last.get("delta", "")
    assert names == []
    assert "Paris" in text
    assert last["usage"]["completion_tokens"] >= len(arrivals) - 2 > 4
    gaps = [after - before for before, after in itertools.pairwise(arrivals)]
    assert sum(gap > 0.001 for gap in gaps) >= 5, "the tokens came in one piece"


async def test_leaving_a_stream_stops_the_generation(client):
    before = await engine_load(client)
    long = body(
        messages=[{"role": "user", "content": "Count from one to one thousand in words."}],
        max_tokens=1500,
        temperature=0.7,
        seed=1,
    )
    async with client.stream("POST", "/internal/llm/stream", json=long) as response:
        seen = 0
        async for line in response.aiter_lines():
            seen += line.startswith("data:")
            if seen >= 5:
                break

    async def stopped():
        load = await engine_load(client)
        return load if load["aborted"] > before["aborted"] and load["running"] == 0 else None

    after = await until(stopped)
    await asyncio.sleep(3)
    assert (await engine_load(client))["generated_tokens"] - after["generated_tokens"] <= 5
    assert after["generated_tokens"] - before["generated_tokens"] < 1000


async def test_leaving_a_whole_call_stops_the_generation(client):
    before = await engine_load(client)
    long = body(
        messages=[{"role": "user", "content": "Write a very long story."}],
        max_tokens=1500,
        temperature=0.7,
        seed=2,
    )
    with pytest.raises(httpx.ReadTimeout):
        await client.post("/internal/llm/proxy", json=long, timeout=1.5)

    async def stopped():
        load = await engine_load(client)
        return load if load["aborted"] > before["aborted"] and load["running"] == 0 else None

    after = await until(stopped)
    assert (
        0 < after["generated_tokens"] - before["generated_tokens"] < 1000
    )  # it had begun, and was not left to finish


@pytest.mark.parametrize(
    "schema",
    [
        {
            "type": "object",
            "properties": {
                "kind": {"const": "answer"},
                "city": {"type": "string"},
                "sure": {"type": "boolean"},
            },
            "required": ["kind", "city", "sure"],
            "additionalProperties": False,
        },
        {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 2, "maxItems": 3},
        {"const": "yes"},
    ],
    ids=["object", "array", "const"],
)
async def test_a_json_schema_is_kept_even_by_a_tiny_model(client, schema):
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    answer = await ask(client, response_format=wanted, max_tokens=300)
    assert answer["finish_reason"] == "stop"
    validate(json.loads(answer["content"]), schema)


@pytest.mark.parametrize(
    "choice",
    ["required", {"type": "function", "function": {"name": "projects_list"}}],
    ids=["required", "named"],
)
async def test_a_forced_tool_is_called_with_valid_arguments(client, choice):
    parameters = {
        "type": "object",
        "properties": {"microdao_id": {"type": "string"}, "state": {"enum": ["open", "closed"]}},
        "required": ["microdao_id", "state"],
        "additionalProperties": False,
    }
    tool = {
        "type": "function",
        "function": {
            "name": "projects_list",
            "description": "Lists projects",
            "parameters": parameters,
        },
    }
    messages = [{"role": "user", "content": "Which projects does microdao:7 have?"}]
    answer = await ask(client, messages=messages, tools=[tool], tool_choice=choice, max_tokens=300)
    (call,) = answer["tool_calls"]
    assert call["function"]["name"] == "projects_list"
    validate(json.loads(call["function"]["arguments"]), parameters)


async def test_the_engines_context_is_a_bound_that_is_told(client):
    response = await client.post(
        "/internal/llm/proxy", json=body(messages=[{"role": "user", "content": "слово " * 30_000}])
    )
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "context_length_exceeded"


async def test_a_remote_model_answers_through_its_provider(graph, client):
    graph.upstream("ok")
    answer = await ask(
        client, model="gpt-4.1-mini", messages=[{"role": "user", "content": "Привіт"}]
    )
    assert (answer["provider"], answer["model_resolved"]) == ("openai", "gpt-4.1-mini")
    assert answer["content"] == "Echo: Привіт"
    assert answer["usage"]["total_tokens"] > 0


async def test_a_failing_remote_falls_back_to_the_engine(graph, client):
    graph.upstream("http_503")
    answer = await ask(client, model="gpt-4", temperature=0, max_tokens=20)
    outcomes = [attempt["outcome"] for attempt in answer["attempts"]]
    assert (answer["provider"], outcomes) == (
        "local",
        ["upstream_unavailable", "upstream_unavailable", "ok"],
    )


async def test_leaving_a_remote_stream_closes_the_upstream(graph, client):
    graph.upstream("stall?after=3")
    async with client.stream("POST", "/internal/llm/stream", json=body("gpt-4.1-mini")) as response:
        async for line in response.aiter_lines():
            if line.startswith("data:"):
                break

    async def closed():
        return graph.upstream()["cancelled"] == 1

    assert await until(closed)


async def test_two_replicas_share_one_limit(graph, client):
    graph.upstream("ok")
    assert len(graph.replicas("llm", "LLMProxy")) == 2
    strict = {**body("gpt-4.1-mini"), "metadata": {**CALLER, "agent_id": "agent:strict"}}
    answers = await asyncio.gather(
        *(client.post("/internal/llm/proxy", json=strict) for _ in range(90))
    )
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}
    assert 26 <= statuses.count(200) <= 30
    assert graph.upstream()["total"] == statuses.count(200)
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert 1 <= int(refused.headers["Retry-After"]) <= 62


def most_in_a_minute(calls):
    """The largest number of `calls` [(began, ended)] that certainly lie in one minute."""
    return max(
        (
            sum(start <= began and ended < start + 60 for began, ended in calls)
            for start, _ in calls
        ),
        default=0,
    )


async def test_a_killed_limit_authority_learns_what_was_spent_before_it_grants_again(graph, client):
    graph.upstream("ok")
    asked = {
        **body("gpt-4.1-mini", max_tokens=20),
        "metadata": {**CALLER, "agent_id": "agent:enduring"},
    }
    admitted, refusals = [], []

    async def call():
        began = time.monotonic()
        response = await client.post("/internal/llm/proxy", json=asked)
        if response.status_code == 200:
            admitted.append((began, time.monotonic()))
        else:
            refusals.append(response.json()["error"])

    for _ in range(5):
        await asyncio.gather(*(call() for _ in range(5)))
    assert len(admitted) == 25, refusals
    victims = graph.named("LimitAuthority")
    assert victims
    for process in victims:
        process.send_signal(signal.SIGKILL)

    async def exhausted():
        await asyncio.gather(*(call() for _ in range(4)))
        return any(
            error["type"] == "rate_limited"
            and error["details"]["limit"] == "agent.requests_per_minute"
            for error in refusals
        )

    assert await until(exhausted, 90)
    assert {error["type"] for error in refusals} <= {"rate_limited", "limits_unavailable"}
    assert len(admitted) >= 37
    assert most_in_a_minute(admitted) <= 40
    states = (
        await client.get("/internal/llm/limits", params={"agent_id": "agent:enduring"})
    ).json()["limits"]
    told = {row["limit"]: row for row in states}
    assert set(told) == {
        f"agent.{meter}"
        for meter in ("requests_per_minute", "tokens_per_minute", "concurrent_calls", "usd_per_day")
    }
    assert told["agent.requests_per_minute"]["left"] <= 3
    assert 0 < told["agent.usd_per_day"]["used"] < 5

    async def accounted():
        page = (
            await client.get("/internal/llm/usage", params={"agent_id": "agent:enduring"})
        ).json()
        return page["rows"] and page["rows"][0]["calls"] == len(admitted) and page["rows"][0]

    row = await until(accounted, 30)
    assert (row["errors"], row["unpriced"]) == (0, 0)
    assert float(row["cost_usd"]) > 0

    async def well():
        return (await client.get("/health")).status_code == 200

    assert await until(well, 120)


async def test_usage_is_summed_by_agent_and_model(graph, client):
    graph.upstream("ok")
    caller = {"agent_id": "agent:counted", "microdao_id": "microdao:9"}
    for _ in range(5):
        await client.post("/internal/llm/proxy", json={**body("gpt-4.1-mini"), "metadata": caller})

    async def summed():
        page = (
            await client.get(
                "/internal/llm/usage",
                params={"agent_id": "agent:counted", "group_by": "model,provider"},
            )
        ).json()
        return page["rows"] if page["rows"] and page["rows"][0]["calls"] == 5 else None

    (row,) = await until(summed)
    assert (row["model"], row["provider"], row["errors"]) == ("gpt-4.1-mini", "openai", 0)
    assert row["total_tokens"] > 0


async def test_every_call_is_one_event_without_contents(graph, client):
    graph.upstream("ok")
    await client.post(
        "/internal/llm/proxy",
        json=body("gpt-4.1-mini", messages=[{"role": "user", "content": "таємне слово"}]),
        headers={"x-request-id": "event-test-1"},
    )

    async def logged():
        return [event for event in graph.events("llm") if event.get("request_id") == "event-test-1"]

    (event,) = await until(logged)
    assert (event["event"], event["agent_id"], event["provider"], event["outcome"]) == (
        "llm.call",
        "agent:sofia",
        "openai",
        "ok",
    )
    assert "таємне" not in json.dumps(graph.events("llm"), ensure_ascii=False)


async def test_health_names_every_dependency(client):
    health = (await client.get("/health")).json()
    assert health["status"] == "ready"
    assert {"database", "nats", "llm", "llm.engine", "llm.limits", "llm.database"} <= set(
        health["checks"]
    )
    assert all(check["age_s"] < 60 for check in health["checks"].values())
    assert (await client.get("/health/live")).json() == {"status": "alive"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/internal/llm/nowhere", 404),
        ("GET", "/internal/llm/proxy", 405),
    ],
)
async def test_unknown_routes_answer_in_the_envelope(client, method, path, status):
    response = await client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["request_id"] == response.headers["x-request-id"]


@pytest.mark.parametrize(
    "path", ["/internal/llm/models/", "/health/", "/internal/llm/health/", "/docs/"]
)
async def test_a_trailing_slash_is_no_redirect(client, path):
    assert (await client.get(path)).status_code == 200


async def test_the_documentation_is_complete_and_offline(client):
    document = (await client.get("/openapi.json")).json()
    assert {
        "/internal/llm/proxy",
        "/internal/llm/stream",
        "/internal/llm/models",
        "/internal/llm/usage",
        "/health",
    } <= set(document["paths"])
    page = (await client.get("/docs")).text
    assert "http://" not in page
    assert "https://" not in page
    assert len((await client.get("/docs/swagger-ui-bundle.js")).content) > 100_000


def test_the_proxys_process_holds_no_model_library(graph):
    replicas = graph.replicas("llm", "LLMProxy")
    assert replicas
    for replica in replicas:
        mapped = " ".join(region.path for region in replica.memory_maps())
        assert "psycopg" in mapped, "the process was not looked into"
        assert not any(name in mapped for name in ("/torch/", "/vllm/", "libtorch"))


def test_everything_listens_on_loopback_only(graph):
    listening = set()
    for process in graph.processes():
        with contextlib.suppress(
            psutil.NoSuchProcess
        ):  # a process that ended meanwhile listens nowhere
            found = [
                connection.laddr
                for connection in process.net_connections("inet")
                if connection.status == "LISTEN"
            ]
            listening |= {(address.ip.removeprefix("::ffff:"), address.port) for address in found}
    assert ("127.0.0.1", graph.port) in listening
    assert {address for address in listening if address[0] not in {"127.0.0.1", "::1"}} == set()


async def test_a_reload_changes_routes_in_place_and_refuses_mistakes(graph, client):
    replicas = {process.pid for process in graph.replicas("llm", "LLMProxy")}
    file = graph.config_dir / "llm.yaml"
    original = file.read_text()
    changed = yaml.safe_load(original)
    changed["models"]["new-name"] = {"provider": "openai", "name": "gpt-4.1-mini"}
    try:
        graph.write_llm(changed)
        graph.reload()

        async def known():
            answers = [await client.get("/internal/llm/models") for _ in range(6)]
            return all(
                "new-name" in [row["id"] for row in answer.json()["models"]] for answer in answers
            )

        assert await until(known)
        file.write_text("models: {}")
        graph.reload("not reloaded: llm.yaml: ")
        assert await known()
        serve_file, serve_text = (
            graph.folder / "serve_config.yaml",
            (graph.folder / "serve_config.yaml").read_text(),
        )
        file.write_text(original)
        for right, wrong in (
            ("deployments.tools.app:build", "deployments.tool_app:build"),
            ("max_concurrent", "max_concurent"),
        ):
            serve_file.write_text(serve_text.replace(right, wrong))
            graph.reload("not reloaded: application ")
            assert (await client.get("/health")).status_code == 200
            serve_file.write_text(serve_text)
        assert await known()  # nothing of what was right in those files was taken either
    finally:
        file.write_text(original)
        graph.reload()
    assert {process.pid for process in graph.replicas("llm", "LLMProxy")} == replicas


async def killed_in_the_middle(graph, client, victim):
    """Kills a replica while the upstream is silent; returns how its calls came into the ledger."""
    graph.upstream("silence")
    who = {"agent_id": "agent:lost", "microdao_id": "microdao:9"}
    calls = [
        asyncio.create_task(
            client.post("/internal/llm/proxy", json={**body("gpt-4.1-mini"), "metadata": who})
        )
        for _ in range(8)
    ]

    async def begun():
        return graph.upstream()["total"] >= 8

    assert await until(begun)
    victim.send_signal(signal.SIGKILL)
    await asyncio.sleep(0.5)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)

    async def accounted():
        page = (await client.get("/internal/llm/usage", params={"agent_id": "agent:lost"})).json()
        return (
            page["rows"] and page["rows"][0]
            if page["rows"] and page["rows"][0]["calls"] >= 8
            else None
        )

    return await until(accounted, 120)


async def test_a_killed_replica_costs_no_ledger_row_and_comes_back(graph, client):
    graph.upstream("ok")
    caller = {"agent_id": "agent:survivor", "microdao_id": "microdao:9"}
    answered = 0

    async def call():
        nonlocal answered
        try:
            response = await client.post(
                "/internal/llm/proxy", json={**body("gpt-4.1-mini"), "metadata": caller}
            )
            answered += response.status_code == 200
        except httpx.HTTPError:
            pass  # the call was in the killed process

    limited, strict = (
        [],
        {**body("gpt-4.1-mini"), "metadata": {**caller, "agent_id": "agent:bereaved"}},
    )

    async def limited_call():
        began = time.monotonic()
        with contextlib.suppress(httpx.HTTPError):
            if (await client.post("/internal/llm/proxy", json=strict)).status_code == 200:
                limited.append((began, time.monotonic()))

    victim = graph.replicas("llm", "LLMProxy")[0]
    await killed_in_the_middle(graph, client, victim)
    graph.upstream("ok")
    victim = graph.replicas("llm", "LLMProxy")[0]
    for number in range(60):
        await asyncio.gather(*(call() for _ in range(4)), limited_call())
        if number == 20:
            victim.send_signal(signal.SIGKILL)
    assert answered > 120  # half of them, whatever the one replica had in work
    assert limited
    assert most_in_a_minute(limited) <= 30

    async def accounted():
        page = (
            await client.get("/internal/llm/usage", params={"agent_id": "agent:survivor"})
        ).json()
        calls = page["rows"][0]["calls"] if page["rows"] else 0
        return calls if calls >= answered else None

    assert answered <= await until(accounted) <= 240

    async def two_again():
        return len(graph.replicas("llm", "LLMProxy")) == 2

    assert await until(two_again, 120)


async def test_without_postgresql_calls_are_answered_and_accounted_for_later(graph, client):
    graph.upstream("ok")
    caller = {"agent_id": "agent:patient", "microdao_id": "microdao:9"}
    for process in graph.named("postgres"):
        process.send_signal(signal.SIGKILL)
    for _ in range(10):
        response = await client.post(
            "/internal/llm/proxy", json={**body("gpt-4.1-mini"), "metadata": caller}
        )
        assert response.status_code == 200
    limited = {**body("gpt-4.1-mini"), "metadata": {**caller, "agent_id": "agent:thrifty"}}
    statuses = [
        (await client.post("/internal/llm/proxy", json=limited)).status_code for _ in range(8)
    ]
    assert statuses.count(200) in {4, 5}
    assert set(statuses) == {200, 429}

    async def accounted():
        response = await client.get("/internal/llm/usage", params={"agent_id": "agent:patient"})
        assert response.status_code in {200, 503}, response.text
        return (
            response.status_code == 200
            and response.json()["rows"]
            and response.json()["rows"][0]["calls"] == 10
        )

    assert await until(accounted)

    async def well():
        return (await client.get("/health")).status_code == 200

    assert await until(well)


async def test_a_killed_engine_is_told_and_replaced(graph, client):
    for process in graph.named("EngineCore"):
        process.send_signal(signal.SIGKILL)

    async def told():
        response = await client.post("/internal/llm/proxy", json=body(max_tokens=5, timeout_s=5))
        return response.status_code == 503 and response.json()["error"]["retryable"]

    assert await until(told)

    async def back():
        response = await client.post("/internal/llm/proxy", json=body(max_tokens=5, timeout_s=5))
        return response.status_code == 200

    assert await until(back, 240)


def test_all_of_this_ran_without_a_network(graph):
    """The suite is started by `tests/support/graph/offline.py`, so every test of it shows that loopback is enough."""
    if os.environ.get(offline.VARIABLE) != "1":
        pytest.skip(
            "this host allows no network namespace, or pytest was not started through tests.support.graph.offline"
        )
    assert [name for _, name in socket.if_nameindex()] == ["lo"]
    routes = Path("/proc/self/net/route").read_text().splitlines()[1:]
    assert routes == []
    assert graph.processes()
