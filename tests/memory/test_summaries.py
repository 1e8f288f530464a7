"""Rolling summaries, with a stand-in that speaks the LLM proxy's contract."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from configs.memory import MemorySettings
from tests.support.events import RecordedEvents
from tests.support.llm.proxy import ingress_of, proxy_over
from tests.support.llm.upstream import ScriptedUpstream, play
from tests.support.memory.application import SOFIA, Memory, memory_application, succeeded
from tests.support.memory.hashing_embedder import HashingEmbedder
from tests.support.uvicorn_server import served


class LLMProxyStandIn:
    """Speaks the proxy's contract; answers with the prompt, so that tests see it."""

    def __init__(self) -> None:
        self.calls: list[dict[str, object]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.refusal: tuple[int, dict[str, object]] | None = None

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.calls.append(body)
        await self.gate.wait()
        if self.refusal is not None:
            return web.json_response({"error": self.refusal[1]}, status=self.refusal[0])
        user = body["messages"][-1]["content"]
        return web.json_response(
            {"content": f"[{user}]", "usage": {}, "provider": "local", "model_resolved": "stand-in"}
        )


@pytest.fixture
async def proxy() -> AsyncIterator[tuple[LLMProxyStandIn, str]]:
    stand_in, app = LLMProxyStandIn(), web.Application()
    app.router.add_post("/internal/llm/proxy", stand_in.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    yield stand_in, f"http://127.0.0.1:{port}"
    await runner.cleanup()


@pytest.fixture
async def summing(
    database_url: str,
    tmp_path: Path,
    embedder: HashingEmbedder,
    events: RecordedEvents,
    proxy: tuple[LLMProxyStandIn, str],
) -> AsyncIterator[Memory]:
    async with memory_application(
        database_url, tmp_path, embedder, events, ingress_url=proxy[1]
    ) as application:
        yield application


async def summarize(memory: Memory, **fields: object) -> dict[str, object]:
    return succeeded(await memory.post("/summarize", {**SOFIA, **fields}))


async def test_a_summary_names_its_sources_and_is_kept_until_something_new_arrives(
    summing: Memory, proxy: tuple[LLMProxyStandIn, str]
):
    llm = proxy[0]
    assert await summarize(summing, limit=10) == {
        "summary": "",
        "items_processed": 0,
        "sources": [],
        "cached": False,
    }
    ids = [
        (await summing.store(f"Подія {number}", channel_id="channel:1", wait=0))["id"]
        for number in range(3)
    ]
    first = await summarize(summing, channel_id="channel:1", limit=10)
    assert first["items_processed"] == 3
    assert first["sources"] == ids
    assert first["model"] == "stand-in"
    assert [f"Подія {number}" in first["summary"] for number in range(3)] == [True] * 3
    assert llm.calls[0]["metadata"] == {**SOFIA, "channel_id": "channel:1"}
    again = await summarize(summing, channel_id="channel:1", limit=10)
    assert again == {**first, "cached": True}
    assert len(llm.calls) == 1
    await summing.store("Інший канал", channel_id="channel:2", wait=0)
    assert (await summarize(summing, channel_id="channel:1", limit=10))["cached"] is True
    ids.append((await summing.store("Подія 3", channel_id="channel:1", wait=0))["id"])
    rolled = await summarize(summing, channel_id="channel:1", limit=10)
    assert rolled["sources"] == ids
    assert rolled["items_processed"] == 4
    shown = llm.calls[-1]["messages"][-1]["content"]
    assert "Підсумок досі" in shown
    assert shown.count("Нові записи") == 2  # the stored summary quotes the first
    assert shown.rsplit("Нові записи", 1)[1].count("Подія") == 1


async def test_a_deleted_memory_is_removed_from_the_summary(
    summing: Memory, proxy: tuple[LLMProxyStandIn, str]
):
    stored = await summing.store("Стерти потім", wait=0)
    kept = await summing.store("Лишити", wait=0)
    assert "Стерти потім" in (await summarize(summing))["summary"]
    succeeded(await summing.client.delete(f"/items/{stored['id']}", params=SOFIA))
    fresh = await summarize(summing)
    assert fresh["cached"] is False
    assert "Стерти" not in fresh["summary"]
    assert fresh["sources"] == [kept["id"]]


async def test_only_the_newest_count_and_long_windows_take_several_calls(
    summing: Memory, proxy: tuple[LLMProxyStandIn, str]
):
    for number in range(12):
        await summing.store(f"Подія {number} " + "довга " * 100, wait=0)
    summary = await summarize(summing, limit=10)
    assert summary["items_processed"] == 10
    assert "Подія 1 " not in summary["summary"]
    assert len(proxy[0].calls) > 1
    assert all(len(call["messages"][-1]["content"]) < 40_000 for call in proxy[0].calls)


async def test_summaries_without_a_model_fail_with_the_proxys_error_and_queries_work(
    summing: Memory, proxy: tuple[LLMProxyStandIn, str]
):
    await summing.store("Факт")
    error = {
        "type": "engine_unavailable",
        "message": "the engine is starting",
        "retryable": True,
        "request_id": "x",
    }
    proxy[0].refusal = (503, error)
    response = await summing.post("/summarize", SOFIA)
    assert response.status_code == 503
    assert response.json()["error"]["type"] == "engine_unavailable"
    assert await summing.contents("факт") == ["Факт"]


async def test_summaries_fail_without_the_proxy_and_queries_work(memory: Memory):
    await memory.store("Факт")
    response = await memory.post("/summarize", SOFIA)
    assert response.status_code == 503
    assert response.json()["error"]["retryable"] is True
    assert await memory.contents("факт") == ["Факт"]


async def test_summaries_through_the_real_proxy(
    database_url: str, tmp_path: Path, embedder: HashingEmbedder, events: RecordedEvents
):
    """Over HTTP, with a scripted provider: long answers arrive whole, errors keep their type."""
    text = "Довгий підсумок. " * 20_000
    async with (
        ScriptedUpstream() as upstream,
        proxy_over(upstream.base_url) as (llm, recorder),
        served(ingress_of(llm, recorder), root_path="/internal/llm") as url,
        memory_application(
            database_url,
            tmp_path,
            embedder,
            events,
            settings=MemorySettings.model_validate(
                {"knowledge_base": {"interval_s": 0}, "summaries": {"model": "plain"}}
            ),
            ingress_url=url.removesuffix("/internal/llm"),
        ) as application,
    ):
        await application.store("Маємо 40 саджанців")
        upstream.script(play("ok", text=text))
        answer = await summarize(application)
        assert (answer["summary"], answer["items_processed"]) == (text.strip(), 1)
        assert "Маємо 40 саджанців" in upstream.requests[-1].body["messages"][-1]["content"]
        assert (recorder.records[-1].agent_id, recorder.records[-1].microdao_id) == (
            "agent:sofia",
            "microdao:7",
        )
        await application.store("І ще 10")
        upstream.script("http_401")
        refused = await application.post("/summarize", SOFIA)
        assert (refused.status_code, refused.json()["error"]["type"]) == (
            502,
            "upstream_auth_failed",
        )
        for thought in ("<think>Що тут сказати?", "<think>Що тут сказати?</think>\n"):
            upstream.script(play("ok", text=thought))
            refused = await application.post("/summarize", SOFIA)
            assert (refused.status_code, refused.json()["error"]["type"]) == (
                502,
                "upstream_invalid_response",
            )
        upstream.script(play("ok", text="<think>Додам.</think>Маємо 50 саджанців."))
        answer = await summarize(application)
        assert (answer["summary"], answer["items_processed"]) == ("Маємо 50 саджанців.", 2)
        assert text[:100] in upstream.requests[-1].body["messages"][-1]["content"], (
            "what was summed up before is not lost"
        )


async def test_no_connection_waits_for_the_model(
    summing: Memory, proxy: tuple[LLMProxyStandIn, str]
):
    await summing.store("Факт")
    proxy[0].gate.clear()
    pending = asyncio.create_task(summarize(summing))
    while not proxy[0].calls:
        await asyncio.sleep(0.01)
    # A health check may hold a connection for a moment, the summary never does.
    async with asyncio.timeout(30):
        pool = summing.runtime.database._pool
        while (stats := pool.get_stats())["pool_available"] != stats["pool_size"]:
            await asyncio.sleep(0.01)
    assert not pending.done()
    proxy[0].gate.set()
    await pending
