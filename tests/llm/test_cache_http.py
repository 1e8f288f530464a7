"""`cache` over HTTP: exact matches of one microDAO are marked and cost a request, no tokens."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from contracts.llm.limits import Limit, LimitKey
from services.llm import cached_answers
from services.llm.cache import AnswerCache
from services.llm.cached_answers import CachedAnswers
from services.llm.gateway import Load
from services.llm.limits.limiter import LeasedLimiter
from tests.support.events import RecordedEvents
from tests.support.llm.limits import InProcessAuthority
from tests.support.llm.proxy import CALLER, client_of, proxy_over
from tests.support.llm.proxy_http import assert_envelope, events_of
from tests.support.llm.upstream import ScriptedUpstream, play

BODY = {
    "model": "plain",
    "messages": [{"role": "user", "content": "Яка столиця?"}],
    "metadata": CALLER,
    "temperature": 0,
    "cache": {"ttl_s": 60},
}
PLAIN = {name: value for name, value in BODY.items() if name != "metadata"}


@asynccontextmanager
async def running(plays="ok", **options):
    async with (
        ScriptedUpstream() as upstream,
        proxy_over(upstream.base_url, **options) as (proxy, recorder),
    ):
        upstream.script(plays)
        load = Load()
        async with client_of(CachedAnswers(proxy, AnswerCache(1 << 20), load), recorder) as client:
            yield client, upstream, recorder, load


async def test_the_second_answer_comes_from_the_cache():
    async with running() as (client, upstream, recorder, _):
        first = (await client.post("/proxy", json=BODY)).json()
        second = (
            await client.post(
                "/proxy",
                json={**BODY, "timeout_s": 9, "metadata": {**CALLER, "agent_id": "agent:other"}},
            )
        ).json()
        assert "cached" not in first
        assert second["cached"] is True
        assert second["request_id"] != first["request_id"]
        assert all(
            second[name] == first[name]
            for name in ("content", "usage", "provider", "model_resolved", "finish_reason")
        )
        assert upstream.total == len(recorder.records) == 1
        event = recorder.events[-1]
        assert (event["event"], event["outcome"], event["cached"], event["agent_id"]) == (
            "llm.call",
            "ok",
            True,
            "agent:other",
        )
        assert event["total_tokens"] == 0


@pytest.mark.parametrize(
    "change",
    [
        {"metadata": {**CALLER, "microdao_id": "microdao:8"}},
        {"messages": [{"role": "user", "content": "яка столиця?"}]},
        {"max_tokens": 5},
        {"seed": 1},
        {"model": "spare"},
        {"stop": "x"},
    ],
    ids=str,
)
async def test_any_difference_is_another_answer(change):
    async with running() as (client, upstream, _, _):
        await client.post("/proxy", json=BODY)
        assert "cached" not in (await client.post("/proxy", json={**BODY, **change})).json()
        assert upstream.total == 2


def only_the_thrifty(caller):
    """A limit of tokens, which caps answers, for one agent alone."""
    return (
        [Limit(LimitKey("agent", caller.agent_id, "tokens_per_minute"), 100_000)]
        if caller.agent_id == "agent:thrifty"
        else []
    )


@asynccontextmanager
async def with_a_thrifty_agent(plays):
    async with ScriptedUpstream() as upstream, proxy_over(upstream.base_url) as (proxy, recorder):
        upstream.script(*plays)
        limiter = LeasedLimiter(InProcessAuthority(), only_the_thrifty, RecordedEvents())
        load = Load()
        async with client_of(
            CachedAnswers(replace(proxy, limiter=limiter), AnswerCache(1 << 20), load),
            recorder,
        ) as client:
            yield client, upstream, load
        await limiter.close()


def of(agent, **fields):
    return {**BODY, "metadata": {**CALLER, "agent_id": agent}, **fields}


@pytest.mark.parametrize("path", ["/proxy", "/stream"])
async def test_an_answer_clipped_by_one_callers_limit_is_given_to_no_other(path):
    async with with_a_thrifty_agent([play("ok", text="Half an", finish_reason="length"), "ok"]) as (
        client,
        upstream,
        _,
    ):
        await client.post(path, json=of("agent:thrifty"))
        assert upstream.requests[0].body["max_tokens"] == 1024, "its limit caps the answer"
        whole = (await client.post("/proxy", json=of("agent:free"))).json()
        assert (whole["content"], "cached" in whole) == ("Echo: Яка столиця?", False)
        assert "max_tokens" not in upstream.requests[1].body
        assert (await client.post("/proxy", json=of("agent:thrifty"))).json()["cached"] is True


async def test_a_caller_that_shares_a_run_is_not_cut_at_the_leaders_limit():
    clipped = play("slow", wait_s=0.5, text="Half an", finish_reason="length")
    async with with_a_thrifty_agent([clipped, "ok"]) as (client, upstream, load):
        first = asyncio.create_task(client.post("/proxy", json=of("agent:thrifty")))
        await upstream.wait_for(requests=1, timeout_s=30)
        second = asyncio.create_task(client.post("/proxy", json=of("agent:free")))
        answers = [response.json() for response in await asyncio.gather(first, second)]
        assert [answer["content"] for answer in answers] == ["Half an", "Echo: Яка столиця?"]
        assert (upstream.total, load.calls) == (2, 0)


async def test_a_length_that_the_request_names_is_everybodys():
    async with with_a_thrifty_agent([play("ok", text="Half an", finish_reason="length"), "ok"]) as (
        client,
        upstream,
        _,
    ):
        await client.post("/proxy", json=of("agent:free", max_tokens=2))
        assert (await client.post("/proxy", json=of("agent:thrifty", max_tokens=2))).json()[
            "cached"
        ] is True
        assert upstream.total == 1


async def test_without_cache_nothing_is_kept_or_shared():
    async with running() as (client, upstream, _, _):
        asked = {name: value for name, value in BODY.items() if name != "cache"}
        answers = await asyncio.gather(*(client.post("/proxy", json=asked) for _ in range(5)))
        assert not any("cached" in answer.json() for answer in answers)
        await client.post("/proxy", json=BODY)
        assert upstream.total == 6


@pytest.mark.parametrize("path", ["/proxy", "/stream", "/v1/chat/completions"])
@pytest.mark.parametrize("temperature", [None, 0.7])
async def test_cache_asks_for_temperature_zero(path, temperature):
    async with running() as (client, upstream, _, _):
        response = await client.post(path, json={**BODY, "temperature": temperature})
        assert response.status_code == 400
        assert "temperature" in response.json()["error"]["message"]
        assert upstream.total == 0


async def test_identical_calls_at_the_same_time_share_one():
    calm = {
        "provider": "backup",
        "name": "m",
        "timeouts": {"first_token_s": 60, "idle_s": 60, "total_s": 60},
    }
    async with running(play("slow", wait_s=0.5), calm=calm) as (client, upstream, recorder, load):
        tasks = [
            asyncio.create_task(client.post("/proxy", json={**BODY, "model": "calm"}))
            for _ in range(20)
        ]
        async with asyncio.timeout(30):
            while load.calls < 20:
                await asyncio.sleep(0.005)
        answers = [response.json() for response in await asyncio.gather(*tasks)]
        assert sum("cached" not in answer for answer in answers) == 1
        assert len({answer["request_id"] for answer in answers}) == 20
        assert (upstream.total, len(recorder.records), load.calls) == (1, 1, 0)


async def test_when_all_callers_leave_the_upstream_stops():
    async with running("silence") as (client, upstream, recorder, _):
        tasks = [asyncio.create_task(client.post("/proxy", json=BODY)) for _ in range(3)]
        await upstream.wait_for(requests=1, timeout_s=30)
        for task in tasks:
            task.cancel()
        await upstream.wait_for(cancelled=1, timeout_s=30)
        assert [record.outcome for record in recorder.records] == ["cancelled"]


async def test_a_waiting_callers_own_deadline_holds():
    calm = {
        "provider": "backup",
        "name": "m",
        "timeouts": {"first_token_s": 60, "idle_s": 60, "total_s": 60},
    }
    async with running(play("silence"), calm=calm) as (client, upstream, _, _):
        leader = asyncio.create_task(client.post("/proxy", json={**BODY, "model": "calm"}))
        await upstream.wait_for(requests=1, timeout_s=30)
        response = await client.post("/proxy", json={**BODY, "model": "calm", "timeout_s": 0.1})
        assert_envelope(response, 504, "deadline_exceeded", retryable=True)
        leader.cancel()
        await upstream.wait_for(cancelled=1, timeout_s=30)
        assert upstream.total == 1


async def test_failures_and_fallbacks_answers_are_not_kept():
    async with running("http_400") as (client, upstream, _, _):
        assert (await client.post("/proxy", json=BODY)).status_code == 400
        upstream.script("ok")
        assert "cached" not in (await client.post("/proxy", json=BODY)).json()
        upstream.script("http_401", model="first")
        for _ in range(2):
            answer = (await client.post("/proxy", json={**BODY, "model": "guarded"})).json()
            assert (answer["model_resolved"], "cached" in answer) == ("second", False)


async def test_an_answer_from_the_cache_counts_as_a_request():
    async with running(limit=2, source=InProcessAuthority()) as (client, upstream, _, _):
        statuses = [(await client.post("/proxy", json=BODY)).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        assert upstream.total == 1


async def test_a_stream_fills_the_cache_and_is_read_from_it():
    async with running("tool_calls") as (client, upstream, recorder, load):
        tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]
        asked = {**BODY, "tools": tools}
        first = events_of((await client.post("/stream", json=asked)).text)
        assert "cached" not in first[-1][1]
        whole = (await client.post("/proxy", json=asked)).json()
        assert whole["cached"] is True
        assert whole["tool_calls"][0]["function"]["name"] == "get_weather"
        replayed = events_of((await client.post("/stream", json=asked)).text)
        assert replayed[0][1]["tool_calls"] == [{"index": 0, **whole["tool_calls"][0]}]
        assert replayed[-1][1]["cached"] is True
        assert replayed[-1][1]["usage"] == first[-1][1]["usage"]
        assert (upstream.total, len(recorder.records), load.calls) == (1, 1, 0)


async def test_a_stream_over_the_bound_passes_and_is_not_kept(monkeypatch):
    monkeypatch.setattr(cached_answers, "MAX_RECORDED_BYTES", 64)
    async with running(play("ok", text="Київ " * 40)) as (client, upstream, _, _):
        streamed = events_of((await client.post("/stream", json=BODY)).text)
        assert "".join(event.get("delta", "") for _, event in streamed) == "Київ " * 40
        assert "cached" not in (await client.post("/proxy", json=BODY)).json()
        assert upstream.total == 2


async def test_a_broken_stream_is_not_kept():
    async with running("cut?after=2") as (client, upstream, _, _):
        await client.post("/stream", json=BODY)
        upstream.script("ok")
        assert "cached" not in (await client.post("/proxy", json=BODY)).json()
        assert upstream.total >= 2


async def test_openai_clients_ask_for_the_cache_with_a_field_of_ours():
    async with running() as (client, upstream, _, _):
        headers = {"X-Microdao-Id": "microdao:7"}
        answers = [
            (await client.post("/v1/chat/completions", json=PLAIN, headers=headers)).json()
            for _ in range(2)
        ]
        assert [answer.get("cached") for answer in answers] == [None, True]
        streamed = (
            await client.post(
                "/v1/chat/completions", json={**PLAIN, "stream": True}, headers=headers
            )
        ).text
        assert '"cached":true' in streamed
        other = (
            await client.post(
                "/v1/chat/completions", json=PLAIN, headers={"X-Microdao-Id": "microdao:8"}
            )
        ).json()
        assert "cached" not in other
        assert all("cache" not in request.body for request in upstream.requests)
