"""`python -m benchmarks.llm.bench [--quick]`: the LLM proxy, its yardsticks and its peers in one
run.

Measured in turn, round after round: the mock upstream alone, Serve's floor (a no-op application in
the same graph), a bare FastAPI+httpx relay, LiteLLM's proxy, Portkey's gateway (where Node is
installed), and `/internal/llm/proxy` of the real graph with credentials, limits, ledger and event
log on. Then our growth with the size of the prompt, and with a second replica. The upstream's own
count of requests and of different bodies must agree with what was sent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.llm import peers
from benchmarks.llm.load import find_wrk
from benchmarks.llm.measuring import Bench, Plan, System, probe, progress
from benchmarks.processes import (
    FLOOR_PREFIX,
    KEY,
    METERED_CALLER,
    NotMeasured,
    Started,
    python_module,
    running_graph,
)
from configs.environment import REPOSITORY
from contracts.errors import DaarionError
from launcher.errors import ServiceFailed, StartRefused

UPSTREAM, FLOOR, RELAY, PROXY = (
    "upstream alone",
    "Serve floor (no-op)",
    "FastAPI+httpx relay",
    "proxy",
)
LITELLM, PORTKEY = "LiteLLM proxy", "Portkey gateway"
METERED = "proxy, every kind of limit"
NAMES = report.Names(UPSTREAM, FLOOR, RELAY, PROXY, LITELLM, PORTKEY)
GROWTH_CONNECTIONS = 32
SETTLE_S = 5.0


async def measure(plan: Plan, serve_config: Path) -> dict[str, Any]:
    """Starts everything, measures, prints the tables; returns the figures for JSON."""
    find_wrk()
    with tempfile.TemporaryDirectory(prefix="daarion-bench-", ignore_cleanup_errors=True) as name:
        async with python_module("benchmarks.llm.mock_upstream", folder=Path(name)) as upstream:
            figures = await _beside_each_other(plan, serve_config, Path(name), upstream)
            if plan.growth:
                figures["replicas"] = await _with_replicas(
                    plan, serve_config, Path(name), upstream, figures["whole"]
                )
            return figures


async def _beside_each_other(
    plan: Plan, serve_config: Path, folder: Path, upstream: Started
) -> dict[str, Any]:
    progress("starting the relay, the peers and the graph")
    async with (
        python_module(
            "benchmarks.llm.relay", "--upstream", f"{upstream.url}/v1", folder=folder
        ) as relay,
        _peers(plan, folder, f"{upstream.url}/v1") as others,
        running_graph(folder / "one", upstream.url, serve_config) as graph,
    ):
        metered = replace(_proxy(graph, METERED), stream_url=None, caller=METERED_CALLER)
        systems = [*_yardsticks(upstream, relay, graph), *others, metered, _proxy(graph)]
        for system in systems:
            await probe(system)
        await asyncio.sleep(SETTLE_S)
        return await _run(Bench(upstream.url, systems, plan))


@asynccontextmanager
async def _peers(plan: Plan, folder: Path, upstream: str) -> AsyncIterator[list[System]]:
    async with AsyncExitStack() as stack:
        found = []
        if plan.peers:
            one = await stack.enter_async_context(peers.litellm(folder, upstream))
            found.append(_openai_system(LITELLM, one, {"Authorization": f"Bearer {KEY}"}))
            other = await stack.enter_async_context(peers.portkey(folder))
            if other is not None:
                found.append(_openai_system(PORTKEY, other, peers.portkey_headers(upstream)))
        yield found


def _openai_system(name: str, started: Started, headers: dict[str, str]) -> System:
    url = f"{started.url}/v1/chat/completions"
    return System(
        name, url, url, headers, extra='"stream":true,', peer=True, processes=started.family
    )


def _yardsticks(upstream: Started, relay: Started, graph: Started) -> list[System]:
    secret = {"X-Internal-Secret": graph.secret}
    direct = f"{upstream.url}/v1/chat/completions"
    return [
        System(UPSTREAM, direct, direct, extra='"stream":true,', processes=upstream.family),
        System(
            FLOOR,
            f"{graph.url}{FLOOR_PREFIX}",
            headers=secret,
            relays=False,
            processes=lambda: graph.family("haproxy", "Replica:floor"),
        ),
        System(
            RELAY,
            f"{relay.url}/internal/llm/proxy",
            f"{relay.url}/internal/llm/stream",
            processes=relay.family,
        ),
    ]


def _proxy(graph: Started, name: str = PROXY) -> System:
    llm = f"{graph.url}/internal/llm"
    secret = {"X-Internal-Secret": graph.secret}
    return System(
        name,
        f"{llm}/proxy",
        f"{llm}/stream",
        secret,
        processes=lambda: graph.family("haproxy", "Replica:llm"),
    )


async def _with_replicas(
    plan: Plan, serve_config: Path, folder: Path, upstream: Started, one: dict[str, Any]
) -> dict[str, Any]:
    """Measures a graph with two replicas of the proxy.

    On two cores they share these with the load and the upstream.
    """
    progress("starting a graph with two replicas")
    async with running_graph(folder / "two", upstream.url, serve_config, replicas=2) as graph:
        system = _proxy(graph, "proxy, 2 replicas")
        await probe(system)
        await asyncio.sleep(SETTLE_S)
        found = await Bench(
            upstream.url, [system], replace(plan, connections=(GROWTH_CONNECTIONS,))
        ).whole()
    lines = report.heading("Two replicas", report.WHOLE_HEAD) + report.whole_table(
        GROWTH_CONNECTIONS, found[GROWTH_CONNECTIONS], None
    )
    if str(GROWTH_CONNECTIONS) in one:
        alone = one[str(GROWTH_CONNECTIONS)][PROXY]["median"]["requests_per_s"]
        both = report.middle(found[GROWTH_CONNECTIONS][system.name]).requests_per_s
        lines.append(
            f"{'':>11}  two replicas give {both / alone:.2f} times the requests/s of one, "
            f"on {os.cpu_count()} cores with load and upstream"
        )
    _print(lines)
    return report.as_json(found)


async def _run(bench: Bench) -> dict[str, Any]:
    plan, where = bench.plan, report.setting(bench.plan.rounds, bench.plan.seconds)
    whole, streams = await bench.whole(), await bench.streams()
    prompts = await bench.prompts(bench.systems[-1]) if plan.growth else {}
    lines = report.heading(f"Whole answers ({where})", report.WHOLE_HEAD)
    for connections, rounds in whole.items():
        lines += report.whole_table(connections, rounds, UPSTREAM)
    lines += report.ratios(whole, PROXY)
    if streams:
        lines += report.heading(
            "Streams, time to the first token and to the end in ms", report.STREAM_HEAD
        )
    for connections, stream_rounds in streams.items():
        lines += report.stream_table(connections, stream_rounds, UPSTREAM)
    if prompts:
        lines += report.heading("proxy by size of the prompt", report.WHOLE_HEAD)
    for connections, rounds in prompts.items():
        lines += report.whole_table(connections, rounds, None)
    lines += report.verdicts(whole, streams, NAMES)
    _print(lines)
    figures = {"whole": whole, "streams": streams, "prompts": prompts}
    return {
        "setting": where,
        "plan": asdict(plan),
        **{name: report.as_json(found) for name, found in figures.items()},
    }


def _print(lines: list[str]) -> None:
    sys.stderr.write("\r\033[K" if sys.stderr.isatty() else "")
    print("\n".join(lines), flush=True)


def _plan(arguments: argparse.Namespace) -> Plan:
    quick = arguments.quick
    return Plan(
        rounds=arguments.rounds or (1 if quick else 5),
        seconds=arguments.seconds or (2 if quick else 5),
        connections=tuple(arguments.connections or ((1, 32) if quick else (1, 32, 256))),
        stream_connections=tuple(
            ()
            if arguments.no_streams
            else arguments.stream_connections or ((1,) if quick else (1, 32, 256))
        ),
        peers=not (quick or arguments.no_peers),
        growth=not (quick or arguments.no_growth),
    )


def main() -> int:
    """Returns 0, or 1 with one line on stderr when something could not be measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="one short round, fewer connections, no peers"
    )
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each single run")
    parser.add_argument("--connections", type=int, nargs="+")
    parser.add_argument("--stream-connections", type=int, nargs="+")
    parser.add_argument("--no-streams", action="store_true")
    parser.add_argument("--no-peers", action="store_true", help="without LiteLLM and Portkey")
    parser.add_argument(
        "--no-growth", action="store_true", help="without prompt sizes and the second replica"
    )
    parser.add_argument(
        "--serve-config",
        type=Path,
        default=REPOSITORY / "serve_config.yaml",
        help="whose application `llm` is measured",
    )
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
