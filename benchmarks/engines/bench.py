"""`python -m benchmarks.engines.bench`: what the LLM proxy takes from the engine behind it.

One graph with the real engine, asked in turn, round after round: `/internal/llm/stream`, and the
bare engine (`benchmarks/engines/bare.py`), which is the same engine's handle behind the same
ingress without the proxy. Prompts differ, so that no answer begins in the engine's prefix cache.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import httpx2

from benchmarks.processes import BARE_PREFIX, NotMeasured, Started, running_graph
from configs.environment import REPOSITORY, read_environment
from contracts.errors import DaarionError
from launcher.errors import ServiceFailed, StartRefused

PROXY, BARE = "proxy", "bare engine"
PATHS = {BARE: BARE_PREFIX, PROXY: "/internal/llm/stream"}
BOUND = 0.95
MODEL = "dagi-local-8b"
TOKENS = 64
CALLER = {"agent_id": "agent:bench", "microdao_id": "microdao:bench"}
_numbers = count()


@dataclass
class Round:
    """What one system did in one round."""

    tokens: int = 0
    seconds: float = 0.0
    first_ms: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Tokens per second of all callers."""
        return self.tokens / self.seconds


async def one_round(client: httpx2.AsyncClient, system: str, callers: int, streams: int) -> Round:
    """Lets each caller read so many streams, one after another."""
    found, started = Round(), time.perf_counter()

    async def caller() -> None:
        for _ in range(streams):
            await _stream(client, system, found)

    await asyncio.gather(*(caller() for _ in range(callers)))
    found.seconds = time.perf_counter() - started
    return found


async def _stream(client: httpx2.AsyncClient, system: str, found: Round) -> None:
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"{next(_numbers)}: tell a long story."}],
        "max_tokens": TOKENS,
        "temperature": 0,
    }
    if system == PROXY:
        body["metadata"] = CALLER
    started, first, tokens = time.perf_counter(), 0.0, 0
    async with client.stream("POST", PATHS[system], json=body) as answer:
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            data = json.loads(line[6:])
            choice = (data.get("choices") or [{}])[0]
            if not first and (data.get("delta") or choice.get("delta", {}).get("content")):
                first = time.perf_counter() - started
            tokens = (data.get("usage") or {}).get("completion_tokens", tokens)
    if not (first and tokens):
        raise NotMeasured(f"{system} answered {answer.status_code} with {tokens} tokens")
    found.tokens += tokens
    found.first_ms.append(first * 1000)


async def measure(callers: list[int], rounds: int, streams: int) -> None:
    """Starts the graph, measures, prints a row for each number of callers and system."""
    with tempfile.TemporaryDirectory(prefix="daarion-bench-", ignore_cleanup_errors=True) as name:
        data = Path(name) / "one/data"
        data.mkdir(parents=True, mode=0o700)
        (data / "models").symlink_to(read_environment().data_dir / "models")
        config = REPOSITORY / "serve_config.yaml"
        async with running_graph(Path(name) / "one", "", config, engine=True) as graph:
            await _measured(graph, callers, rounds, streams)


async def _measured(graph: Started, callers: list[int], rounds: int, streams: int) -> None:
    async with httpx2.AsyncClient(
        base_url=graph.url,
        headers={"X-Internal-Secret": graph.secret},
        timeout=600,
        trust_env=False,
    ) as client:
        for system in PATHS:
            await one_round(client, system, 2, 1)
        cores = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start"
        print(f"{rounds} rounds of {streams} streams of {TOKENS} tokens a caller; {cores}")
        print(f"{'callers':>7}  {'system':<12}{'tokens/s':>10}{'first p50 ms':>14}")
        for number in callers:
            found: dict[str, list[Round]] = {system: [] for system in PATHS}
            for turn in range(rounds):
                for system in sorted(PATHS, reverse=turn % 2 == 1):
                    found[system].append(await one_round(client, system, number, streams))
            _row(number, found)


def _row(callers: int, found: dict[str, list[Round]]) -> None:
    rates = {name: median(one.rate for one in rounds) for name, rounds in found.items()}
    firsts = {
        name: median(ms for one in rounds for ms in one.first_ms) for name, rounds in found.items()
    }
    for name in found:
        print(f"{callers:>7}  {name:<12}{rates[name]:>10.1f}{firsts[name]:>14.1f}")
    for what, ratio in (
        ("tokens/s", rates[PROXY] / rates[BARE]),
        ("first token", firsts[BARE] / firsts[PROXY]),
    ):
        verdict = "within" if ratio >= BOUND else "OVER"
        print(f"{'':>9}{what}: {ratio:.3f} of the bare engine, bound {BOUND} {verdict}", flush=True)


def main() -> int:
    """Returns 0, or 1 with one line on stderr when something could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--streams", type=int, default=3, help="of each caller in a round")
    given = parser.parse_args()
    try:
        asyncio.run(measure(given.callers, given.rounds, given.streams))
    except (NotMeasured, DaarionError, ServiceFailed, StartRefused, OSError) as error:
        sys.stderr.write(f"not measured: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
