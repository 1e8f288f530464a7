"""`python -m benchmarks.agents.bench`: what the agent pipeline adds beside the model's and the
tools' own time, part by part.

Needs a running graph (`make run`). A further agent runtime in this process answers a person's
messages in a channel of its own, one after another, over the graph's ingress: twenty earlier
messages, memory, one tool call, the reply, the exchange stored. Its model is the graph's local one;
what the model and the tool take is measured and taken out. The rest of the time until the reply
is in the channel is what the pipeline adds. Between two messages there is a pause, in which
the graph embeds the last exchange.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import secrets
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any
from uuid import UUID

import aiohttp

from configs.environment import Environment, read_environment
from contracts.agents.blueprints import Blueprint
from contracts.agents.invocations import AgentInvocation
from contracts.agents.runs import RunView
from contracts.errors import ConfigurationError, DaarionError
from deployments.agents.wiring import AgentRuntime, AgentsArgs
from deployments.graph.resources import WingEnvironment

# Toolcore lets it call projects.list, and the graph itself has no blueprint for it.
AGENT = "agent:pm"
PERSON = "user:bench"
QUESTION = "Which projects does our microDAO have?"
EARLIER = 20
WARM_UP = 2
RUNS = 20
PAUSE_S = 0.7
BUDGET_MS = 60.0
"""Of the median that the pipeline adds, on an idle machine."""
PARTS = ("tool_list", "context", "memory", "llm", "tools", "reply", "store")
NOT_OURS = ("llm", "tools")
NOTES = {
    "tool_list": "beside context and memory",
    "llm": "the model's",
    "tools": "the tools'",
    "reply": "until the messaging-service has it",
    "store": "after the reply",
    "recording": "accepting the run and writing it down before what must not happen twice",
}


class _NoEvents:
    def emit(self, event: str, **fields: object) -> None:
        """Drops events."""


@dataclass
class Times:
    """Milliseconds by part, one value per run; `added` is the wait for the reply without the
    model's and the tools' time.
    """

    parts: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    added: list[float] = field(default_factory=list)

    def add(self, run: RunView, accepted_ms: float) -> None:
        """Adds one run."""
        spent = {
            part: sum(step.duration_ms for step in run.steps if step.kind == part) for part in PARTS
        }
        for part, milliseconds in spent.items():
            self.parts[part].append(milliseconds)
        [reply] = [step for step in run.steps if step.kind == "reply"]
        added = (
            accepted_ms
            + reply.started_ms
            + reply.duration_ms
            - sum(spent[part] for part in NOT_OURS)
        )
        self.added.append(added)
        # The list of tools is fetched beside context and memory.
        self.parts["recording"].append(added - spent["context"] - spent["memory"] - spent["reply"])


def blueprint() -> Blueprint:
    """Returns the agent that is measured: everything a channel's agent does, in few tokens."""
    return Blueprint.model_validate(
        {
            "id": AGENT,
            "name": "Bench",
            "model": "dagi-local-8b",
            "language": "en",
            "instructions": "Answer in one short sentence.",
            "tools": ["projects.list"],
            "first_step": "required",
            "temperature": 0,
            "history": EARLIER,
            "answer": {
                "tool": "projects.list",
                "field": "name",
                "reply": "Projects: {choices}.",
                "none": "None.",
            },
            "memory": {"recall": 5},
            "limits": {"steps": 2, "answer_tokens": 64, "context_tokens": 800},
        }
    )


@dataclass
class Channel:
    """A channel of the graph's workspace, over HTTP."""

    session: aiohttp.ClientSession
    base: str
    microdao: str = field(default_factory=lambda: f"microdao:bench-{secrets.token_hex(4)}")
    id: str = ""

    async def open(self) -> None:
        """Makes a project, the channel, and earlier messages."""
        await self._post("projects", name="Amber Lighthouse", microdao_id=self.microdao)
        self.id = (
            await self._post("channels", name="bench", microdao_id=self.microdao, members=[PERSON])
        )["id"]
        for number in range(EARLIER):
            await self.say(f"Earlier message {number}")

    async def ask(self) -> AgentInvocation:
        """Posts the question while the agent is out, so that the graph's own runtime is not
        invoked, and returns its invocation.
        """
        message = await self.say(QUESTION)
        await self._post(f"channels/{self.id}/members", member_id=AGENT)
        payload = {"channel_id": self.id, "message_id": message["id"], "microdao_id": self.microdao}
        return AgentInvocation.model_validate(
            {"agent_id": AGENT, "entrypoint": "channel_message", "payload": payload}
        )

    async def say(self, text: str) -> Any:
        return await self._post(f"channels/{self.id}/messages", sender_id=PERSON, text=text)

    async def send_out(self) -> None:
        async with self.session.delete(f"{self.base}/channels/{self.id}/members/{AGENT}"):
            pass

    async def _post(self, path: str, **body: Any) -> Any:
        async with self.session.post(f"{self.base}/{path}", json=body) as answer:
            return await answer.json()


async def measure(environment: Environment, runs: int) -> Times:
    """Answers `runs` messages, one after another. Raises DaarionError, ConfigurationError or
    aiohttp.ClientError.
    """
    secret = environment.internal_secret or environment.admin_secret
    known = {AGENT: blueprint()}
    times = Times()
    headers = {"X-Internal-Secret": secret} if secret else {}
    async with aiohttp.ClientSession(
        headers=headers, trust_env=False, raise_for_status=True
    ) as session:
        channel = Channel(session, f"{environment.ingress_url}/internal/messaging")
        await channel.open()
        wing_environment = dataclasses.replace(WingEnvironment.of(environment), nats_url=None)
        runtime = AgentRuntime(AgentsArgs(), wing_environment, lambda: known, _NoEvents())
        await runtime.open()
        try:
            for number in range(WARM_UP + runs):
                invocation = await channel.ask()
                await asyncio.sleep(PAUSE_S)
                started = time.monotonic()
                accepted = await runtime.runs.invoke(invocation, wait=False)
                accepted_ms = (time.monotonic() - started) * 1e3
                run = await _ended(runtime, channel.microdao, accepted.run_id)
                await channel.send_out()
                if number >= WARM_UP:
                    times.add(run, accepted_ms)
        finally:
            await runtime.close()
    return times


async def _ended(runtime: AgentRuntime, microdao: str, run_id: UUID) -> RunView:
    """The run as it ended. Raises ConfigurationError when it did not answer."""
    for _ in range(600):
        await asyncio.sleep(0.1)
        run = await runtime.store.find(microdao, run_id)
        if run is not None and run.finished_at is not None:
            if run.status != "answered":
                raise ConfigurationError(f"a run ended as {run.status}: is the local model ready?")
            return run
    raise ConfigurationError("a run did not end within a minute")


def table(times: Times) -> list[str]:
    """Returns the lines of the report."""
    rows = [f"{'part':<12}{'p50 ms':>10}{'p95 ms':>10}"]
    for part in (*PARTS, "recording"):
        note = f"  {NOTES[part]}" if part in NOTES else ""
        rows.append(
            f"{part:<12}{median(times.parts[part]):>10.1f}{_p95(times.parts[part]):>10.1f}{note}"
        )
    added = median(times.added)
    verdict = "within" if added <= BUDGET_MS else "OVER"
    rows.append(
        f"{'added':<12}{added:>10.1f}{_p95(times.added):>10.1f}"
        "  from the invocation to the reply, without the model's and the tools'"
    )
    rows.append(
        f"the median is {verdict} the budget of {BUDGET_MS:.0f} ms for an idle machine; "
        f"load per core now {_load():.1f}"
    )
    return rows


def _load() -> float:
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def _p95(values: Sequence[float]) -> float:
    return quantiles(values, n=20)[-1] if len(values) > 1 else values[0]


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        description="What the agent pipeline adds beside the model and the tools."
    )
    parser.add_argument("--runs", type=int, default=RUNS)
    given = parser.parse_args(argv)
    try:
        times = asyncio.run(measure(read_environment(), max(2, given.runs)))
    except aiohttp.ClientError:
        print(
            "the graph cannot be reached: start it with `make run` in another terminal",
            file=sys.stderr,
        )
        return 2
    except DaarionError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    print("\n".join(table(times)))
    return 0 if median(times.added) <= BUDGET_MS else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
