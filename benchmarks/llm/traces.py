"""`python -m benchmarks.llm.traces`: what tracing costs the LLM proxy, in one run.

Two real graphs before the same upstream, loaded in turn, round after round: one without tracing,
one that keeps one trace of a hundred and sends it to a collector in this process. The collector's
count of requests must agree with the sampler, so that what was measured did trace. What the places
of spans cost while there is no tracing is too little for a load test: it is timed by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import timeit
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchmarks import report
from benchmarks.llm.load import find_wrk
from benchmarks.llm.measuring import Bench, Plan, System, probe
from benchmarks.processes import NotMeasured, Started, python_module, running_graph
from common import tracing
from configs.environment import REPOSITORY
from contracts.errors import DaarionError
from contracts.llm.requests import CallMetadata
from contracts.llm.usage import OUTCOME_OK, UsageRecord
from launcher.errors import ServiceFailed, StartRefused
from services.llm.call_spans import CallSpans
from services.llm.embeddings import embedding_target

OFF, ON = "proxy, no tracing", "proxy, 1 % of the traces"
SHARE, TOLERANCE = 0.01, 0.4
BOUND = 0.90
SETTLE_S = 5.0
FLUSH_S = 7.0
"""Longer than the five seconds after which the SDK sends what it has."""


class Collector:
    """Counts spans by their kind."""

    def __init__(self) -> None:
        self.url = ""
        self.requests = 0
        self.spans = 0

    async def take(self, request: web.Request) -> web.Response:
        """Takes one export."""
        sent = ExportTraceServiceRequest.FromString(await request.read())
        for resource in sent.resource_spans:
            for scope in resource.scope_spans:
                self.spans += len(scope.spans)
                self.requests += sum(span.name.startswith("POST ") for span in scope.spans)
        return web.Response()


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """Yields a collector that listens on loopback."""
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        collector.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield collector
    finally:
        await runner.cleanup()


async def measure(plan: Plan, serve_config: Path) -> float:
    """Starts everything, measures, prints the table; returns the worst ratio."""
    find_wrk()
    with tempfile.TemporaryDirectory(prefix="daarion-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        async with (
            collecting() as collector,
            python_module("benchmarks.llm.mock_upstream", folder=folder) as upstream,
            running_graph(folder / "off", upstream.url, serve_config) as off,
            running_graph(
                folder / "on", upstream.url, serve_config, variables=_tracing(collector.url)
            ) as on,
        ):
            systems = [_system(off, OFF), _system(on, ON)]
            for system in systems:
                await probe(system)
            await asyncio.sleep(SETTLE_S)
            before = collector.requests
            whole = await Bench(upstream.url, systems, plan).whole()
            await asyncio.sleep(FLUSH_S)
        seen = collector.requests - before
    loads = [load for rounds in whole.values() for load in rounds[ON]]
    check_share(seen, sum(load.requests for load in loads))
    lines = report.heading(
        f"Tracing ({report.setting(plan.rounds, plan.seconds)})", report.WHOLE_HEAD
    )
    worst = 1.0
    for connections, rounds in whole.items():
        lines += report.whole_table(connections, rounds, OFF)
        off_s, on_s = (report.middle(rounds[name]).requests_per_s for name in (OFF, ON))
        worst = min(worst, on_s / off_s)
        lines.append(f"{connections:>11}  with tracing {on_s / off_s:.3f} of the requests/s")
    met = "met" if worst >= BOUND else "MISSED"
    lines.append(f"{met:>11}  at least {BOUND:g}; the collector has {collector.spans:,} spans")
    lines.append(f"{'':>11}  without tracing the places of spans cost {off_us():.1f} µs of a call")
    print("\n".join(lines), flush=True)
    return worst


def off_us(calls: int = 20_000) -> float:
    """Returns the microseconds that a relayed call spends in the places of spans without tracing:
    in the ingress, in the call and its attempt, and in two events.
    """
    target = embedding_target("openai", "mock-model")
    metadata = CallMetadata(agent_id="agent:sofia", microdao_id="microdao:7")
    named = dict.fromkeys(("agent_id", "microdao_id", "request_id", "logical_model"), "x")
    physical = {"provider": "openai", "physical_model": "mock-model"}
    record = UsageRecord(**named, **physical, outcome=OUTCOME_OK, latency_ms=1.0)

    def call() -> None:
        tracing.is_on()
        spans = CallSpans("chat", "bench", metadata)
        spans.asked([])
        spans.attempt(target)
        with spans.within():
            spans.answered("x")
        spans.attempt_ended(OUTCOME_OK)
        spans.ended(record, "stop")
        tracing.current_trace_id()
        tracing.current_trace_id()

    return min(timeit.repeat(call, number=calls, repeat=5)) / calls * 1e6


def _tracing(url: str) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": str(SHARE),
    }


def _system(graph: Started, name: str) -> System:
    return System(
        name,
        f"{graph.url}/internal/llm/proxy",
        headers={"X-Internal-Secret": graph.secret},
        processes=lambda: graph.family("haproxy", "Replica:llm"),
    )


def check_share(seen: int, measured: int) -> None:
    """The warm-up is not among the measured calls, so there may be some more. Raises NotMeasured
    when another share of the calls was traced.
    """
    expected = measured * SHARE
    if not (1 - TOLERANCE) * expected <= seen <= (1 + TOLERANCE) * expected + 50:
        raise NotMeasured(f"of {measured} calls {seen} were traced, not about {expected:.0f}")


def main() -> int:
    """Returns 0, or 1 where the bound is missed or, with a line on stderr, nothing was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5, help="of each single run")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--serve-config", type=Path, default=REPOSITORY / "serve_config.yaml")
    given = parser.parse_args()
    plan = Plan(given.rounds, given.seconds, tuple(given.connections), stream_connections=())
    try:
        return int(asyncio.run(measure(plan, given.serve_config)) < BOUND)
    except (NotMeasured, DaarionError, ServiceFailed, StartRefused, OSError) as error:
        sys.stderr.write(f"\nnot measured: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
