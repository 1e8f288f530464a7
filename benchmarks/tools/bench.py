"""The cost of a tool call: what Toolcore adds to an HTTP tool, and each isolation tier.

The same endpoint is called directly and through Toolcore over one connection, by turns within each
round, so that a busy moment of the machine hits both. PostgreSQL is a real, durable one; Toolcore
runs as it does in a replica, without Serve.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import aiohttp

from backends.postgres.migrate import migrate
from benchmarks.processes import NotMeasured, python_module
from benchmarks.tools.server import EFFECTS, Nowhere
from contracts.deadline import Deadline
from contracts.tools.api import Execution, IsolationTier, ToolDefinition
from executors.python.executor import PythonLimits, PythonToolExecutor
from executors.python.packages import Packages
from executors.python.tiers import HostTiers, probe_tiers
from launcher.postgres import PostgresServer

BUDGET_MS = 5.0
CALLER = {"agent_id": "agent:bench", "microdao_id": "microdao:bench"}
ARGS = {"microdao_id": "microdao:bench", "limit": 10}
TEXT = "Привіт, світе. Це невеликий текст для вимірювання. " * 20

MAX_FAILED = 0.05

Call = Callable[[], Awaitable[None]]


class CallFailed(Exception):
    """One call did not succeed, as may happen on a machine whose disk is held by others."""


@dataclass(frozen=True)
class Times:
    """Milliseconds per call. On a busy machine `p10` is closest to an idle machine."""

    p10: float
    p50: float
    p95: float

    @classmethod
    def of(cls, seconds: list[float]) -> Times:
        """Sums up single measurements."""
        parts = quantiles(seconds, n=20)
        return cls(parts[1] * 1e3, median(seconds) * 1e3, parts[18] * 1e3)


class HttpSide:
    """The endpoint and Toolcore before it, each over one kept connection."""

    def __init__(self, session: aiohttp.ClientSession, target: str, toolcore: str) -> None:
        self._session = session
        self._target = target
        self._toolcore = toolcore
        self._count = 0

    def calls(self) -> dict[str, Call]:
        """What is measured, by name; the first is the baseline."""
        through: dict[str, Call] = {
            f"through Toolcore, {effect}": self._through(effect) for effect in EFFECTS
        }
        named: dict[str, Call] = {
            "through Toolcore, read with call_id": self._through("read", named=True)
        }
        return {"the endpoint itself": self._direct, **through, **named}

    async def _direct(self) -> None:
        async with self._session.post(
            self._target, json={"args": ARGS, "context": CALLER}
        ) as response:
            await response.json()

    def _through(self, effect: str, *, named: bool = False) -> Call:
        async def call() -> None:
            self._count += 1
            body: dict[str, object] = {"tool_id": f"bench.{effect}", "args": ARGS, **CALLER}
            if named:
                body["call_id"] = f"bench-{os.getpid()}-{self._count}"
            async with self._session.post(f"{self._toolcore}/call", json=body) as response:
                answer = await response.json()
            if not answer["ok"]:
                raise CallFailed(answer["error"])

        return call


async def measure(calls: dict[str, Call], rounds: int, per_round: int) -> dict[str, Times]:
    """Measures the calls by turns, after warm-up rounds. Raises NotMeasured if too many fail."""
    found: dict[str, list[float]] = defaultdict(list)
    warm_up, failed = max(1, rounds // 10), 0
    for number in range(rounds + warm_up):
        for name, call in calls.items():
            for _ in range(per_round):
                started = time.perf_counter()
                try:
                    await call()
                except CallFailed as error:
                    failed += 1
                    if failed > MAX_FAILED * rounds * per_round * len(calls):
                        raise NotMeasured(f"too many calls failed, the last one: {error}") from None
                    continue
                if number >= warm_up:
                    found[name].append(time.perf_counter() - started)
    return {name: Times.of(seconds) for name, seconds in found.items()}


async def http_times(folder: Path, rounds: int, *, durable: bool) -> dict[str, Times]:
    """Returns the times of the endpoint and of every way through Toolcore."""
    async with PostgresServer(folder, durable=durable) as postgres:
        await migrate(postgres.urls.owner)
        os.environ["DATABASE_URL"] = postgres.urls.service
        async with (
            python_module("benchmarks.tools.server", folder=folder) as target,
            python_module(
                "benchmarks.tools.server", "--target", target.url, folder=folder
            ) as toolcore,
            aiohttp.ClientSession() as session,
        ):
            return await measure(HttpSide(session, target.url, toolcore.url).calls(), rounds, 10)


async def tier_times(rounds: int) -> tuple[dict[str, Times], dict[IsolationTier, str]]:
    """Returns the times of a small Python tool in each tier, and why this host lacks others."""
    host = await probe_tiers()
    packages = Packages(["toolbox"])
    await asyncio.to_thread(packages.compile)
    executors = {tier: _executor(packages, tier) for tier in host.available}
    calls: dict[str, Call] = {"an empty interpreter": _interpreter}
    calls |= {f"in tier {tier}": _sandboxed(executor, tier) for tier, executor in executors.items()}
    try:
        return await measure(calls, rounds, 2), host.refusals
    finally:
        for executor in executors.values():
            await executor.close()


def _executor(packages: Packages, tier: IsolationTier) -> PythonToolExecutor:
    nowhere = Nowhere()
    return PythonToolExecutor(
        packages, HostTiers((tier,)), nowhere, nowhere, limits=PythonLimits(), floor="process"
    )


async def _interpreter() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-I", "-S", "-c", "pass")
    await process.wait()


def _sandboxed(executor: PythonToolExecutor, tier: IsolationTier) -> Call:
    tool = ToolDefinition(
        id="text.summary_stats",
        name="bench",
        input_schema={},
        executor="python",
        target="toolbox.text:summary_stats",
        effect="read",
        isolation=tier,
    )

    async def call() -> None:
        outcome = await executor.execute(
            Execution(tool, {"text": TEXT}, {}, "bench", Deadline.after(30), "bench")
        )
        if not outcome.ok:
            raise NotMeasured(f"a call in tier {tier} failed: {outcome.error}")

    return call


def table(title: str, times: dict[str, Times]) -> list[str]:
    """Returns the lines of one table; the added time is the difference from the first row."""
    base = next(iter(times.values()))
    lines = [
        f"{title:<40}{'p10 ms':>10}{'p50 ms':>10}{'p95 ms':>10}{'p10 added':>12}{'p50 added':>12}"
    ]
    for name, one in times.items():
        added = "" if one is base else f"{one.p10 - base.p10:12.2f}{one.p50 - base.p50:12.2f}"
        lines.append(f"{name:<40}{one.p10:10.2f}{one.p50:10.2f}{one.p95:10.2f}{added}")
    return lines


async def run(rounds: int, *, durable: bool) -> int:
    """Prints both tables; returns 1 when Toolcore adds more than its budget."""
    with tempfile.TemporaryDirectory(prefix="daarion-bench-", ignore_cleanup_errors=True) as folder:
        by_http = await http_times(Path(folder), rounds, durable=durable)
    by_tier, refused = await tier_times(max(5, rounds // 5))
    print("\n".join(table("HTTP tool", by_http)))
    print()
    print("\n".join(table("Python tool", by_tier)))
    for tier, reason in refused.items():
        print(f"tier {tier} is not offered here: {reason}")
    base, *ways = by_http.values()
    worst = max(way.p50 - base.p50 for way in ways)
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    print(
        f"\nToolcore adds at most {worst:.2f} ms at the median "
        f"(budget {BUDGET_MS:g} ms on an idle machine; load per core now {load:.1f})"
    )
    return 0 if worst <= BUDGET_MS else 1


def main() -> int:
    """Reads the arguments; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="rounds of ten calls each way")
    parser.add_argument(
        "--no-fsync",
        action="store_true",
        help="without waiting for the disk: what the code alone costs",
    )
    given = parser.parse_args()
    try:
        return asyncio.run(run(max(2, given.rounds), durable=not given.no_fsync))
    except NotMeasured as error:
        print(f"not measured: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
