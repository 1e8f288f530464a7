"""`python -m benchmarks.llm [--quick]`: the LLM proxy beside its yardsticks, in one run.

Measured in turn, round after round: the mock upstream alone, Serve's floor (a no-op application in the same graph), a bare
FastAPI+httpx relay, and `/internal/llm/proxy` of the real graph with credentials, limits, ledger and event log on. The
upstream's own count of requests and of different bodies must agree with what was sent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from benchmarks import report
from benchmarks.load import Load, find_wrk, run_load
from benchmarks.processes import FLOOR_PREFIX, MODEL, NotMeasured, Started, cpu_seconds, python_module, running_graph
from benchmarks.streams import StreamLoad, run_streams
from configs.environment import REPOSITORY
from contracts.errors import DaarionError
from launcher.errors import ServiceFailed, StartRefused

UPSTREAM, FLOOR, RELAY, PROXY = "upstream alone", "Serve floor (no-op)", "FastAPI+httpx relay", "proxy"
SETTLE_S = 5.0
PAUSE_S = 0.5


@dataclass(frozen=True)
class System:
    """One thing to measure. `relays` says whether each request must arrive at the upstream, `extra` is put into stream bodies.

    `processes` finds the processes whose CPU time counts as this system's.
    """

    name: str
    url: str
    stream_url: str | None = None
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    relays: bool = True
    extra: str = ""
    processes: Callable[[], list[psutil.Process]] = list


@dataclass(frozen=True)
class Plan:
    """How much to measure."""

    rounds: int
    seconds: float
    connections: tuple[int, ...]
    stream_connections: tuple[int, ...]


@dataclass
class Bench:
    """The systems under load and the upstream that counts."""

    upstream: str
    systems: list[System]
    plan: Plan

    async def whole(self) -> dict[int, dict[str, list[Load]]]:
        """Measures whole answers."""
        found: dict[int, dict[str, list[Load]]] = {}
        for connections in self.plan.connections:
            found[connections] = {system.name: [] for system in self.systems}
            for number in range(self.plan.rounds + 1):  # the first warms up
                for system in self.systems:
                    load = await self._load(system, connections, self.plan.seconds if number else min(2, self.plan.seconds))
                    if number:
                        found[connections][system.name].append(load)
                        _progress(f"{connections} connections, round {number}, {system.name}: {load.requests_per_s:,.0f} requests/s")
        return found

    async def streams(self) -> dict[int, dict[str, list[StreamLoad]]]:
        """Measures streams of those systems that have them."""
        found: dict[int, dict[str, list[StreamLoad]]] = {}
        systems = [system for system in self.systems if system.stream_url]
        for connections in self.plan.stream_connections:
            found[connections] = {system.name: [] for system in systems}
            for number in range(self.plan.rounds):
                for system in systems:
                    load = await self._stream(system, connections)
                    found[connections][system.name].append(load)
                    _progress(f"{connections} streams, round {number + 1}, {system.name}: first token after {load.first_p50_ms:.2f} ms")
        return found

    async def _load(self, system: System, connections: int, seconds: float) -> Load:
        run, before = secrets.token_hex(6), cpu_seconds(system.processes())
        load = await run_load(system.url, system.headers, run, connections=connections, seconds=seconds)
        used = cpu_seconds(system.processes()) - before
        await self._check(system, run, low=load.requests, high=load.requests + load.errors + connections)
        return replace(load, cpu_ms=used * 1000 / load.requests)

    async def _stream(self, system: System, connections: int) -> StreamLoad:
        run, before = secrets.token_hex(6), cpu_seconds(system.processes())
        url, seconds = str(system.stream_url), self.plan.seconds
        load = await run_streams(url, system.headers, run, connections=connections, seconds=seconds, extra=system.extra)
        used = cpu_seconds(system.processes()) - before
        await self._check(system, run, low=load.streams, high=load.streams + load.errors)
        return replace(load, cpu_ms=used * 1000 / load.streams)

    async def _check(self, system: System, run: str, *, low: int, high: int) -> None:
        """Compares what the upstream saw of a run with what was sent.

        Raises:
            NotMeasured: requests were answered without the upstream, came twice, or shared a body.
        """
        await asyncio.sleep(PAUSE_S)
        async with aiohttp.ClientSession(trust_env=False) as session, session.get(f"{self.upstream}/count/{run}") as response:
            seen: dict[str, int] = await response.json()
        if not system.relays:
            low = high = 0
        if not low <= seen["calls"] <= high:
            raise NotMeasured(f"{system.name}: {low} requests were answered, but the upstream saw {seen['calls']}")
        if seen["different_bodies"] != seen["calls"]:
            raise NotMeasured(f"{system.name}: the upstream saw the same body twice")


async def probe(system: System) -> None:
    """Makes one call. Raises NotMeasured unless it is answered as it should be."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Call probe-1"}],
        "metadata": {"agent_id": "agent:a", "microdao_id": "microdao:1"},
    }
    try:
        async with (
            aiohttp.ClientSession(trust_env=False) as session,
            session.post(system.url, json=body, headers=system.headers) as response,
        ):
            text = await response.text()
    except aiohttp.ClientError as error:
        raise NotMeasured(f"{system.name} did not answer: {type(error).__name__}") from None
    if response.status != 200 or (system.relays and "Київ" not in text):
        raise NotMeasured(f"{system.name} answered {response.status}: {text[:200]}")


async def measure(plan: Plan, serve_config: Path) -> dict[str, Any]:
    """Starts everything, measures, prints the table; returns the figures for JSON."""
    find_wrk()
    with tempfile.TemporaryDirectory(prefix="daarion-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        async with python_module("benchmarks.mock_upstream", folder=folder) as upstream:
            _progress("starting the relay and the graph")
            async with (
                python_module("benchmarks.relay", "--upstream", f"{upstream.url}/v1", folder=folder) as relay,
                running_graph(folder, upstream.url, serve_config) as graph,
            ):
                systems = _systems(upstream, relay, graph)
                for system in systems:
                    await probe(system)
                await asyncio.sleep(SETTLE_S)
                return await _run(Bench(upstream.url, systems, plan))


def _systems(upstream: Started, relay: Started, graph: Started) -> list[System]:
    secret = {"X-Internal-Secret": graph.secret}
    direct = f"{upstream.url}/v1/chat/completions"
    llm = f"{graph.url}/internal/llm"
    return [
        System(UPSTREAM, direct, direct, extra='"stream":true,', processes=upstream.family),
        System(
            FLOOR, f"{graph.url}{FLOOR_PREFIX}", headers=secret, relays=False, processes=lambda: graph.family("haproxy", "Replica:floor")
        ),
        System(RELAY, f"{relay.url}/internal/llm/proxy", f"{relay.url}/internal/llm/stream", processes=relay.family),
        System(PROXY, f"{llm}/proxy", f"{llm}/stream", secret, processes=lambda: graph.family("haproxy", "Replica:llm")),
    ]


async def _run(bench: Bench) -> dict[str, Any]:
    plan, where = bench.plan, report.setting(bench.plan.rounds, bench.plan.seconds)
    whole, streams = await bench.whole(), await bench.streams()
    lines = report.heading(f"Whole answers ({where})", report.WHOLE_HEAD)
    for connections, rounds in whole.items():
        lines += report.whole_table(connections, rounds, UPSTREAM)
    lines += report.ratios(whole, PROXY)
    if streams:
        lines += report.heading("Streams, time to the first token and to the end in ms", report.STREAM_HEAD)
    for connections, stream_rounds in streams.items():
        lines += report.stream_table(connections, stream_rounds, UPSTREAM)
    sys.stderr.write("\r\033[K" if sys.stderr.isatty() else "")
    print("\n".join(lines))
    return {"setting": where, "plan": asdict(plan), "whole": report.as_json(whole), "streams": report.as_json(streams)}


def _progress(text: str) -> None:
    sys.stderr.write(f"\r\033[K{text}" if sys.stderr.isatty() else f"{text}\n")
    sys.stderr.flush()


def _plan(arguments: argparse.Namespace) -> Plan:
    quick = arguments.quick
    return Plan(
        rounds=arguments.rounds or (1 if quick else 5),
        seconds=arguments.seconds or (2 if quick else 5),
        connections=tuple(arguments.connections or ((1, 32) if quick else (1, 32, 256))),
        stream_connections=tuple(() if arguments.no_streams else arguments.stream_connections or ((1,) if quick else (1, 32))),
    )


def main() -> int:
    """Returns 0, or 1 with one line on stderr when something could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round, fewer connections")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each single run")
    parser.add_argument("--connections", type=int, nargs="+")
    parser.add_argument("--stream-connections", type=int, nargs="+")
    parser.add_argument("--no-streams", action="store_true")
    parser.add_argument("--serve-config", type=Path, default=REPOSITORY / "serve_config.yaml", help="whose application `llm` is measured")
    parser.add_argument("--json", type=Path, help="also writes the figures there")
    arguments = parser.parse_args()
    try:
        figures = asyncio.run(measure(_plan(arguments), arguments.serve_config))
    except (NotMeasured, DaarionError, ServiceFailed, StartRefused, OSError) as error:
        sys.stderr.write(f"\nnot measured: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
