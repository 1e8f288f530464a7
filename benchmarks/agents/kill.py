"""Checks that each message gets one reply while replicas of the running graph are killed.

    make run                                 # in another terminal
    python -m benchmarks.agents.kill         # 50 channels, 10 messages each

Conversations run in many channels. Every message is repeated under its own id until the workspace
accepts it, as a client would do. Meanwhile replica processes of the graph in `DAARION_DATA_DIR` are
killed at random (SIGKILL). At the end each message must have exactly one reply: one run, one
message of that run, and an answer. The exit status is 1 when one is lost, doubled or an apology.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import quantiles
from typing import Any

import aiohttp
import psutil

from configs.environment import read_environment
from contracts.errors import ConfigurationError

MESSAGING = "/internal/messaging"
RUNTIME = "/internal/agent-runtime"
DEFAULT_AGENT = "agent:demo"
DEFAULT_VICTIMS = ("agents:AgentRuntime", "workspace:Workspace")
RETRY_S = 0.25
POLL_EVERY_S = 1.0
LINGER_S = 20.0
QUESTION = "Which projects do we have? ({token})"

Kill = Callable[[], Awaitable[str | None]]
"""Kills one replica; returns its name, None when there was none."""


@dataclass
class Plan:
    """The load on the platform; times are in seconds."""

    channels: int = 50
    messages: int = 10
    agent: str = DEFAULT_AGENT
    pause_s: float = 1.0
    kill_every_s: float = 8.0
    give_up_s: float = 1_800.0
    linger_s: float = LINGER_S


@dataclass
class KillOutcome:
    """The outcome of the messages. `lost` have no reply, `doubled` more than one; `strangers` are
    replies to no message, `apologies` those of failed runs.
    """

    asked: int = 0
    answered: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    strangers: int = 0
    apologies: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether each message has exactly one answer and there are no other replies."""
        return self.asked > 0 and not (
            self.lost or self.doubled or self.strangers or self.apologies
        )

    def lines(self) -> list[str]:
        """Returns the report."""
        kills = ", ".join(f"{name} {count}" for name, count in sorted(self.kills.items())) or "none"
        found = [
            f"messages {self.asked}, with exactly one reply {self.answered}",
            f"lost {len(self.lost)}, doubled {len(self.doubled)}",
            f"replies to nothing {self.strangers}",
            f"replies that say that the run failed: {self.apologies}",
            f"replicas killed: {kills}; {self.seconds:.0f} s",
        ]
        if len(self.latencies_s) > 1:
            cuts = quantiles(self.latencies_s, n=20)
            found.append(
                f"from message to reply: p50 {cuts[9]:.1f} s, p95 {cuts[18]:.1f} s, "
                f"longest {max(self.latencies_s):.1f} s"
            )
        return found


class Client:
    """JSON calls that are repeated until they succeed, because replicas are killed meanwhile."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def call(self, method: str, path: str, body: Any = None, *, until: float) -> Any:
        """Returns the parsed answer. Raises RuntimeError for a final refusal, or when `until`
        (monotonic) passes.
        """
        while True:
            status, answer = 0, None
            with suppress(aiohttp.ClientError, TimeoutError, json.JSONDecodeError):
                async with self._session.request(
                    method, f"{self._url}{path}", json=body
                ) as response:
                    status, answer = response.status, json.loads(await response.read())
            if 200 <= status < 300:
                return answer
            if 400 <= status < 500 and status not in {404, 408, 429, 499}:
                raise RuntimeError(f"{method} {path} was refused with {status}")
            if time.monotonic() > until:
                raise RuntimeError(
                    f"{method} {path} did not succeed in time (last status {status})"
                )
            await asyncio.sleep(RETRY_S)


@dataclass
class Conversation:
    """One channel and the messages that were sent in it, by id, with their times."""

    channel: str
    microdao: str
    asked: dict[str, datetime] = field(default_factory=dict)


async def shoot_and_ask(
    url: str, plan: Plan, kill: Kill | None, *, headers: dict[str, str] | None = None
) -> KillOutcome:
    """Sends all messages while `kill` is called repeatedly, waits for the replies, counts them."""
    outcome, began = KillOutcome(), time.monotonic()
    until = began + plan.give_up_s
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout, trust_env=False) as session:
        client = Client(session, url)
        microdao = f"microdao:soak-{uuid.uuid4().hex[:8]}"
        project = {"name": f"Project {uuid.uuid4().hex[:6]}", "microdao_id": microdao}
        await client.call("POST", f"{MESSAGING}/projects", project, until=until)
        shooting = asyncio.create_task(_shoot(kill, plan, outcome)) if kill is not None else None
        try:
            conversations = await asyncio.gather(
                *(
                    _converse(client, plan, microdao, number, until)
                    for number in range(plan.channels)
                )
            )
            await _wait_for_replies(client, conversations, until)
        finally:
            if shooting is not None:
                shooting.cancel()
                await asyncio.gather(shooting, return_exceptions=True)
        await asyncio.sleep(plan.linger_s)  # a doubled reply would come late
        for conversation in conversations:
            await _count(client, conversation, outcome, time.monotonic() + 120)
    outcome.seconds = time.monotonic() - began
    return outcome


async def _shoot(kill: Kill, plan: Plan, outcome: KillOutcome) -> None:
    while True:
        await asyncio.sleep(random.uniform(0.5, 1.5) * plan.kill_every_s)
        victim = await kill()
        if victim is not None:
            outcome.kills[victim] += 1


async def _converse(
    client: Client, plan: Plan, microdao: str, number: int, until: float
) -> Conversation:
    person = f"user:{number}"
    body = {"name": f"channel {number}", "microdao_id": microdao, "members": [person, plan.agent]}
    channel = (await client.call("POST", f"{MESSAGING}/channels", body, until=until))["id"]
    conversation = Conversation(channel, microdao)
    for place in range(plan.messages):
        token = f"{number}-{place}"
        message = {"sender_id": person, "text": QUESTION.format(token=token), "message_id": token}
        stored = await client.call(
            "POST", f"{MESSAGING}/channels/{channel}/messages", message, until=until
        )
        conversation.asked[stored["id"]] = datetime.fromisoformat(stored["created_at"])
        await asyncio.sleep(random.uniform(0, 2 * plan.pause_s))
    return conversation


async def _wait_for_replies(
    client: Client, conversations: Sequence[Conversation], until: float
) -> None:
    """Returns when every channel has as many replies as messages, or at `until`: then the count
    shows what is missing.
    """
    for conversation in conversations:
        while len(await _replies(client, conversation, until + 60)) < len(conversation.asked):
            if time.monotonic() > until:
                return
            await asyncio.sleep(POLL_EVERY_S)


async def _replies(
    client: Client, conversation: Conversation, until: float
) -> list[dict[str, Any]]:
    path = f"{MESSAGING}/channels/{conversation.channel}/messages?limit=200"
    messages = await client.call("GET", path, until=until)
    return [message for message in messages if message["sender_type"] == "agent"]


async def _count(
    client: Client, conversation: Conversation, outcome: KillOutcome, until: float
) -> None:
    """Counts the replies of each message: a reply names its run, and the run its message."""
    runs: dict[str, dict[str, Any]] = {}
    channel = f"microdao_id={conversation.microdao}&channel_id={conversation.channel}"
    path = f"{RUNTIME}/runs?{channel}&limit=200"
    for run in (await client.call("GET", path, until=until))["items"]:
        runs[run["id"]] = run
    found: Counter[str] = Counter()
    for reply in await _replies(client, conversation, until):
        run = runs.get(reply.get("run_id", ""))
        if run is None or run["trigger_id"] not in conversation.asked:
            outcome.strangers += 1
            continue
        found[run["trigger_id"]] += 1
        outcome.apologies += run["status"] == "failed"
        outcome.latencies_s.append(
            (
                datetime.fromisoformat(reply["created_at"]) - conversation.asked[run["trigger_id"]]
            ).total_seconds()
        )
    outcome.asked += len(conversation.asked)
    outcome.answered += sum(found[message] == 1 for message in conversation.asked)
    outcome.lost += [message for message in conversation.asked if found[message] == 0]
    outcome.doubled += [message for message in conversation.asked if found[message] > 1]


def graph_killer(launcher_pid: int, victims: Sequence[str]) -> Kill:
    """Returns a function that kills one replica process of this launcher's graph. `victims` are
    `<application>:<deployment>`.
    """

    def shoot() -> str | None:
        found = []
        with suppress(psutil.Error):
            for process in psutil.Process(launcher_pid).children(recursive=True):
                title = " ".join(process.cmdline())
                found += [(process, name) for name in victims if f"ServeReplica:{name}" in title]
        if not found:
            return None
        process, name = random.choice(found)
        with suppress(psutil.Error):
            process.kill()
        return name

    async def kill() -> str | None:
        return await asyncio.to_thread(shoot)

    return kill


def launcher_of(data_dir: Path) -> int:
    """Returns the pid of the launcher that runs on this data directory. Raises ConfigurationError
    when there is none.
    """
    with suppress(OSError, ValueError, KeyError, TypeError):
        pid = int(json.loads((data_dir / "run" / "state.json").read_text())["launcher"])
        if psutil.pid_exists(pid):
            return pid
    raise ConfigurationError("no graph runs on this data directory: start it with `make run`")


async def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status."""
    environment = read_environment()
    pid = launcher_of(environment.data_dir)
    secret = environment.internal_secret
    plan = Plan(
        arguments.channels,
        arguments.messages,
        arguments.agent,
        kill_every_s=arguments.every,
        give_up_s=arguments.give_up,
    )
    print(
        f"{plan.channels} channels, {plan.messages} messages each, {plan.agent}; "
        f"a replica is killed about every {plan.kill_every_s:g} s"
    )
    kill = graph_killer(pid, arguments.kill)
    outcome = await shoot_and_ask(
        environment.ingress_url,
        plan,
        kill,
        headers={"X-Internal-Secret": secret} if secret else None,
    )
    print("\n".join(outcome.lines()))
    return 0 if outcome.ok else 1


def main() -> int:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(description="One reply per message while replicas are killed.")
    parser.add_argument("--channels", type=int, default=50)
    parser.add_argument("--messages", type=int, default=10)
    parser.add_argument("--agent", default=DEFAULT_AGENT)
    parser.add_argument(
        "--every", type=float, default=8.0, help="seconds between kills, on average"
    )
    parser.add_argument(
        "--give-up",
        type=float,
        default=1_800.0,
        help="seconds after which missing replies count as lost",
    )
    parser.add_argument(
        "--kill", nargs="+", default=list(DEFAULT_VICTIMS), metavar="APPLICATION:DEPLOYMENT"
    )
    try:
        return asyncio.run(run(parser.parse_args()))
    except (ConfigurationError, RuntimeError) as error:
        print(f"agents_kill: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
