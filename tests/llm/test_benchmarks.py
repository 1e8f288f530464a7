"""The benchmark refuses what it cannot measure honestly."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from benchmarks.llm import traces
from benchmarks.llm.load import Load
from benchmarks.llm.measuring import Bench, Plan, System
from benchmarks.llm.mock_upstream import Counter, MockProtocol
from benchmarks.llm.soak import Soaked
from benchmarks.processes import NotMeasured, python_module
from benchmarks.report import Names, middle, ratios, verdicts, whole_table
from tests.support.otlp import tracing_to

REPOSITORY = Path(__file__).resolve().parents[2]
PLAN = Plan(rounds=1, seconds=1, connections=(4,), stream_connections=(4,))
needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[str]:
    counter = Counter()
    server = await asyncio.get_running_loop().create_server(
        lambda: MockProtocol(counter, 4, 0.001), "127.0.0.1", 0
    )
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def test_without_wrk_it_refuses_in_one_line_that_names_the_package():
    environment = {name: value for name, value in os.environ.items() if name != "PATH"} | {
        "PATH": "/nonexistent"
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.llm.bench"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.strip().splitlines() == [
        (
            "not measured: the load generator `wrk` is not installed: "
            "apt-get install wrk (Debian package `wrk`)"
        )
    ]


async def test_the_mock_upstream_answers_whole_and_in_tokens_and_counts_by_run(upstream):
    async with aiohttp.ClientSession() as session:
        for text in ("Call one-0-1 x", "Call one-0-2 x", "Call one-0-2 x", "Call two-0-1 x"):
            async with session.post(
                f"{upstream}/v1/chat/completions",
                json={"messages": [{"role": "user", "content": text}]},
            ) as response:
                assert (await response.json())["usage"]["total_tokens"] == 90
        async with session.post(
            f"{upstream}/v1/chat/completions", json={"stream": True, "messages": []}
        ) as response:
            events = [line async for line in response.content if line.startswith(b"data: ")]
        async with session.get(f"{upstream}/count/one") as response:
            assert await response.json() == {"calls": 3, "different_bodies": 2}
        async with session.get(f"{upstream}/nothing") as response:
            assert response.status == 404
    assert events[-1] == b"data: [DONE]\n"
    assert [
        json.loads(event[6:])["choices"][0]["delta"].get("content") for event in events[:4]
    ] == ["слово "] * 4
    assert json.loads(events[-2][6:])["usage"]["total_tokens"] == 90


@needs_wrk
async def test_each_request_has_its_own_body_and_arrives_once(upstream, tmp_path):
    async with python_module(
        "benchmarks.llm.relay", "--upstream", f"{upstream}/v1", folder=tmp_path
    ) as relay:
        system = System(
            "relay",
            f"{relay.url}/internal/llm/proxy",
            f"{relay.url}/internal/llm/stream",
            processes=relay.family,
        )
        bench = Bench(upstream, [system], PLAN)
        (load,) = (await bench.whole())[4]["relay"]
        (streams,) = (await bench.streams())[4]["relay"]
    assert load.requests > 20
    assert (load.errors, streams.errors) == (0, 0)
    assert load.cpu_ms > 0
    assert streams.first_p50_ms <= streams.total_p50_ms
    assert streams.tokens == 6  # four words, the finish reason, usage


@needs_wrk
@pytest.mark.parametrize("asked", [0, 2], ids=["answers from a cache", "asks twice"])
async def test_a_system_that_does_not_ask_once_per_request_is_not_measured(upstream, asked):
    async def handler(request: web.Request) -> web.Response:
        body = await request.read()
        async with aiohttp.ClientSession() as session:
            for _ in range(asked):
                async with session.post(f"{upstream}/v1/chat/completions", data=body) as response:
                    await response.read()
        return web.json_response({"content": "cached"})

    app = web.Application()
    app.router.add_post("/", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        system = System("cheat", f"http://127.0.0.1:{runner.addresses[0][1]}/")
        with pytest.raises(NotMeasured, match="the upstream saw"):
            await Bench(upstream, [system], PLAN).whole()
    finally:
        await runner.cleanup()


def test_medians_ratios_and_the_table():
    def load(rate: float, p50: float, errors: int = 0) -> Load:
        return Load(requests=10, requests_per_s=rate, p50_ms=p50, p99_ms=2 * p50, errors=errors)

    rounds = {
        "upstream": [load(1000, 1)] * 3,
        "proxy": [load(100, 5), load(400, 2), load(200, 3, errors=1)],
    }
    assert middle(rounds["proxy"]) == Load(
        requests=30, requests_per_s=200, p50_ms=3, p99_ms=6, errors=1
    )
    assert ratios({8: rounds}, "proxy")[-1].split() == ["8", "upstream", "0.20"]
    table = whole_table(8, rounds, "upstream")
    assert table[1].split() == [
        "8",
        "proxy",
        "200",
        "3.00",
        "6.00",
        "2.00",
        "4.00",
        "0.00",
        "0",
        "0",
        "1",
        "errors",
    ]


def test_bounds_are_shown_as_met_or_missed():
    def load(rate: float, p50: float = 1, p99: float = 2) -> list[Load]:
        return [Load(requests=10, requests_per_s=rate, p50_ms=p50, p99_ms=p99, errors=0)]

    names = Names("upstream", "floor", "relay", "proxy", "litellm", "portkey")
    whole = {
        1: {"upstream": load(9, 0.1), "proxy": load(9, 1.1, 6)},
        32: {
            "upstream": load(9000),
            "floor": load(3000),
            "relay": load(500),
            "litellm": load(90),
            "proxy": load(1000),
        },
    }
    shown = [(line.split()[0], line.rpartition(": ")[2]) for line in verdicts(whole, {}, names)[2:]]
    assert shown == [
        ("MISSED", "11.11 (at least 13)"),
        ("MISSED", "2.00 (at least 2.5)"),
        ("met", "0.33 (at least 0.28)"),
        ("met", "1.00 (at most 1.2)"),
        ("MISSED", "5.45 (at most 5)"),
    ], "a peer that was not measured has no line"


def test_a_soak_is_good_only_without_errors_and_with_flat_memory():
    def window(memory: float, errors: int = 0) -> Load:
        return Load(
            requests=10, requests_per_s=10, p50_ms=1, p99_ms=2, errors=errors, memory_mib=memory
        )

    flat = Soaked([window(50), window(90), *[window(100 + number % 3) for number in range(8)]])
    assert flat.failure() is None
    growing = Soaked([window(100 + number * 3) for number in range(10)])
    assert "memory grew" in str(growing.failure())
    assert Soaked([*flat.windows, window(100, errors=2)]).failure() == "2 requests failed"


async def test_the_collector_of_the_tracing_benchmark_counts_what_a_process_sends(monkeypatch):
    async with traces.collecting() as collector:

        def trace():
            with tracing_to(collector, monkeypatch) as tracing:
                for _ in range(3):
                    with tracing.span("POST /proxy"), tracing.span("chat bench"):
                        pass

        await asyncio.to_thread(trace)
    assert (collector.requests, collector.spans) == (3, 6)


@pytest.mark.parametrize("seen", [0, 20, 300])
def test_a_run_that_traced_another_share_of_the_calls_is_refused(seen):
    traces.check_share(100, 10_000)
    with pytest.raises(NotMeasured, match="of 10000 calls"):
        traces.check_share(seen, 10_000)
