"""`python -m benchmarks.agents`: what the agent pipeline adds beside the model's and the tools' own time, part by part.

Needs a running graph (`make run`). A further agent runtime in this process answers questions in a channel of its own, one after
another, over the graph's ingress: twenty earlier messages, memory, one tool call, the reply, the exchange stored. Its model is the
graph's local one; what the model and the tool take is measured and taken out. The last column is what a person waits for beside them.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles

import aiohttp

from configs.environment import Environment, read_environment
from configs.stores import find_stores
from contracts.agents import AgentInvocation, Blueprint, RunView
from contracts.errors import ConfigurationError, DaarionError
from deployments.agent_wiring import AgentRuntime, AgentsArgs, AgentSurroundings

# Toolcore lets it call projects.list, and the graph itself has no blueprint for it.
AGENT = "agent:pm"
PERSON = "user:bench"
QUESTION = "Which projects does our microDAO have?"
EARLIER = 20
WARM_UP = 2
RUNS = 20
PARTS = ("tool_list", "context", "memory", "llm", "tools", "reply", "store")
NOT_OURS = ("llm", "tools")


class _NoEvents:
    def emit(self, event: str, **fields: object) -> None:
        """Nothing is kept."""


@dataclass
class Times:
    """Milliseconds by part, one value per run; `added` is the wait for the reply without the model's and the tools' time."""

    parts: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    added: list[float] = field(default_factory=list)

    def add(self, run: RunView, waited_ms: float) -> None:
        """Takes one run in."""
        spent = {part: sum(step.duration_ms for step in run.steps if step.kind == part) for part in PARTS}
        for part, milliseconds in spent.items():
            self.parts[part].append(milliseconds)
        after = waited_ms - sum(spent[part] for part in (*NOT_OURS, "store"))
        self.added.append(after)
        # The list of tools is fetched beside context and memory.
        self.parts["recording"].append(after - spent["context"] - spent["memory"] - spent["reply"])


def blueprint() -> Blueprint:
    """Returns the agent that is measured: everything a channel's agent does, in few tokens."""
    return Blueprint.model_validate({
        "id": AGENT, "name": "Bench", "model": "dagi-local-8b", "language": "en", "instructions": "Answer in one short sentence.",
        "tools": ["projects.list"], "first_step": "required", "temperature": 0, "history": EARLIER,
        "answer": {"tool": "projects.list", "field": "name", "reply": "Projects: {choices}.", "none": "None."},
        "memory": {"recall": 5}, "limits": {"steps": 2, "answer_tokens": 64, "context_tokens": 800},
    })  # fmt: skip


async def prepare(environment: Environment) -> tuple[str, str]:
    """Makes a microDAO with a project and a channel with earlier messages; returns both ids."""
    secret = environment.internal_secret or environment.admin_secret
    headers = {"X-Internal-Secret": secret} if secret else {}
    microdao = f"microdao:bench-{secrets.token_hex(4)}"
    base = f"{environment.ingress_url}/internal/messaging"
    async with aiohttp.ClientSession(headers=headers, trust_env=False, raise_for_status=True) as session:
        async with session.post(f"{base}/projects", json={"name": "Amber Lighthouse", "microdao_id": microdao}):
            pass
        async with session.post(f"{base}/channels", json={"name": "bench", "microdao_id": microdao, "members": [PERSON]}) as answer:
            channel: str = (await answer.json())["id"]
        for number in range(EARLIER):
            async with session.post(f"{base}/channels/{channel}/messages", json={"sender_id": PERSON, "text": f"Earlier message {number}"}):
                pass
        async with session.post(f"{base}/channels/{channel}/members", json={"member_id": AGENT}):
            pass
    return microdao, channel


async def measure(environment: Environment, runs: int) -> Times:
    """Answers `runs` questions, one after another. Raises DaarionError or ConfigurationError."""
    stores = find_stores(environment)
    secret = environment.internal_secret or environment.admin_secret
    surroundings = AgentSurroundings(stores.database_url, None, environment.ingress_url, secret)
    microdao, channel = await prepare(environment)
    known = {AGENT: blueprint()}
    runtime = AgentRuntime(AgentsArgs(), surroundings, lambda: known, _NoEvents())
    await runtime.open()
    times = Times()
    try:
        for number in range(WARM_UP + runs):
            payload = {"channel_id": channel, "microdao_id": microdao, "text": QUESTION}
            invocation = AgentInvocation.model_validate({"agent_id": AGENT, "entrypoint": "cron", "payload": payload})
            started = time.monotonic()
            answer = await runtime.runs.invoke(invocation, wait=True)
            waited = (time.monotonic() - started) * 1e3
            run = await runtime.store.find(microdao, answer.run_id)
            if run is None or run.status != "answered":
                raise ConfigurationError(f"a run ended as {answer.status}: is the local model ready?")
            if number >= WARM_UP:
                times.add(run, waited)
    finally:
        await runtime.close()
    return times


def table(times: Times) -> list[str]:
    """Returns the lines of the report."""
    rows = [f"{'part':<12}{'p50 ms':>10}{'p95 ms':>10}"]
    for part in (*PARTS, "recording"):
        note = {
            "llm": "  the model's",
            "tools": "  the tools'",
            "store": "  after the reply",
            "tool_list": "  beside context and memory",
        }.get(part, "")
        rows.append(f"{part:<12}{median(times.parts[part]):>10.1f}{_p95(times.parts[part]):>10.1f}{note}")
    rows.append(
        f"{'added':<12}{median(times.added):>10.1f}{_p95(times.added):>10.1f}  until the reply is there, without the model's and the tools'"
    )
    return rows


def _p95(values: Sequence[float]) -> float:
    return quantiles(values, n=20)[-1] if len(values) > 1 else values[0]


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description="What the agent pipeline adds beside the model and the tools.")
    parser.add_argument("--runs", type=int, default=RUNS)
    given = parser.parse_args(argv)
    try:
        times = asyncio.run(measure(read_environment(), max(2, given.runs)))
    except aiohttp.ClientError:
        print("the graph cannot be reached: start it with `make run` in another terminal", file=sys.stderr)
        return 2
    except DaarionError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    print("\n".join(table(times)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
