"""`python -m benchmarks.llm.soak [--minutes 30]`: the proxy under steady load, its memory watched.

A closed loop of whole answers, minute after minute, against `/internal/llm/proxy` of the real graph
with credentials, limits, ledger and event log on. It fails when a request failed, when the upstream
saw another number of calls than were answered, or when the replica holds over 5 % more memory at
the end than after the warm-up (the first fifth).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.llm.bench import PROXY
from benchmarks.llm.load import Load, find_wrk
from benchmarks.llm.measuring import Bench, Plan, System, probe
from benchmarks.processes import NotMeasured, python_module, running_graph
from configs.environment import REPOSITORY
from contracts.errors import DaarionError
from launcher.errors import ServiceFailed, StartRefused

MOST_GROWTH = 0.05
WARM_UP = 0.2
CONNECTIONS = 16
WINDOW_S = 30.0


@dataclass(frozen=True)
class Soaked:
    """Measurements by window."""

    windows: list[Load]

    @property
    def growth(self) -> float:
        """Relative growth of memory since the warm-up, by medians of three windows at each end."""
        after = max(1, round(len(self.windows) * WARM_UP))
        first, last = self.windows[after : after + 3], self.windows[-3:]
        return median(one.memory_mib for one in last) / median(one.memory_mib for one in first) - 1

    @property
    def errors(self) -> int:
        """Requests that failed."""
        return sum(one.errors for one in self.windows)

    def failure(self) -> str | None:
        """Why the soak failed, or None."""
        if self.errors:
            return f"{self.errors} requests failed"
        if self.growth > MOST_GROWTH:
            return (
                f"memory grew by {self.growth:.1%} after the warm-up; "
                f"at most {MOST_GROWTH:.0%} is good"
            )
        return None


async def soak(minutes: float, serve_config: Path) -> Soaked:
    """Runs the load and returns the measurements.

    Raises:
        NotMeasured: something did not start, or requests and upstream calls do not agree.
    """
    find_wrk()
    count = max(8, round(minutes * 60 / WINDOW_S))
    with tempfile.TemporaryDirectory(prefix="daarion-soak-", ignore_cleanup_errors=True) as name:
        async with (
            python_module("benchmarks.llm.mock_upstream", folder=Path(name)) as upstream,
            running_graph(Path(name) / "graph", upstream.url, serve_config) as graph,
        ):
            url, secret = f"{graph.url}/internal/llm/proxy", {"X-Internal-Secret": graph.secret}
            system = System(
                PROXY, url, headers=secret, processes=lambda: graph.family("Replica:llm")
            )
            await probe(system)
            bench = Bench(upstream.url, [system], Plan(1, WINDOW_S, (CONNECTIONS,), ()))
            return Soaked([await _window(bench, number, count) for number in range(count)])


async def _window(bench: Bench, number: int, count: int) -> Load:
    load = await bench.load(bench.systems[0], CONNECTIONS, WINDOW_S)
    said = (
        f"{load.requests_per_s:,.0f} requests/s, p50 {load.p50_ms:.1f} ms, "
        f"p99 {load.p99_ms:.1f} ms, {load.memory_mib:.1f} MiB"
    )
    print(f"{number + 1:>4}/{count}  {said}, {load.errors} errors", flush=True)
    return load


def main() -> int:
    """Returns 0 when everything held, 1 with one line on stderr when it did not."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--serve-config", type=Path, default=REPOSITORY / "serve_config.yaml")
    arguments = parser.parse_args()
    try:
        seen = asyncio.run(soak(arguments.minutes, arguments.serve_config))
    except (NotMeasured, DaarionError, ServiceFailed, StartRefused, OSError) as error:
        sys.stderr.write(f"not measured: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    requests = sum(one.requests for one in seen.windows)
    print(
        f"{requests:,} requests in {len(seen.windows) * WINDOW_S / 60:.0f} minutes, "
        f"{seen.errors} errors, memory {seen.growth:+.1%}"
    )
    failure = seen.failure()
    if failure:
        sys.stderr.write(f"{failure}\n")
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
