"""`python -m benchmarks.tools.isolation`: the cost of a Python tool call in each tier.

The tool is `toolbox.text:summary_stats` on a short text, called one after another, the tiers in
turn; times are the caller's.
"""

from __future__ import annotations

import asyncio
import sys
import time
from statistics import median, quantiles

from contracts.deadline import Deadline
from contracts.tools.api import Execution, IsolationTier, ToolDefinition
from executors.python.executor import PythonToolExecutor
from executors.python.packages import Packages
from executors.python.tiers import HostTiers, probe_tiers

ROUNDS = 40
WARM_UP = 3
TEXT = "Кооператив збирає врожай. Врожай великий, а рук мало: кожні дві на рахунку."


class _NoSecrets:
    def value(self, _name: str) -> str | None:
        return None


class _NoEvents:
    def emit(self, event: str, **fields: object) -> None:
        """Drops events."""


async def measure(rounds: int = ROUNDS) -> dict[IsolationTier, list[float]]:
    """Returns the milliseconds of each call by tier, from the weakest to the strongest."""
    host = await probe_tiers()
    packages = Packages(["toolbox"])
    packages.compile()
    executors = {
        tier: PythonToolExecutor(
            packages, HostTiers((tier,)), _NoSecrets(), _NoEvents(), floor=tier
        )
        for tier in host.available
    }
    times: dict[IsolationTier, list[float]] = {tier: [] for tier in host.available}
    for number in range(WARM_UP + rounds):
        for tier, executor in executors.items():
            taken = await _call(executor)
            if number >= WARM_UP:
                times[tier].append(taken)
    return times


async def _call(executor: PythonToolExecutor) -> float:
    tool = ToolDefinition(
        id="text.summary_stats",
        name="-",
        input_schema={},
        executor="python",
        target="toolbox.text:summary_stats",
        effect="read",
    )
    started = time.perf_counter()
    outcome = await executor.execute(
        Execution(tool, {"text": TEXT}, {}, "bench", Deadline.after(30), "bench")
    )
    if not outcome.ok:
        sys.exit(f"the tool failed: {outcome.error}")
    return (time.perf_counter() - started) * 1000


def table(times: dict[IsolationTier, list[float]]) -> list[str]:
    """Returns the lines of the table."""
    lines = [f"{'tier':<12}{'calls':>7}{'min ms':>9}{'p50 ms':>9}{'p90 ms':>9}"]
    for tier, taken in times.items():
        lines.append(
            f"{tier:<12}{len(taken):>7}{min(taken):>9.1f}{median(taken):>9.1f}"
            f"{quantiles(taken, n=10)[-1]:>9.1f}"
        )
    return lines


if __name__ == "__main__":
    print("\n".join(table(asyncio.run(measure()))))
