"""`python -m launcher.demo`: in a running graph, asks the demo agent about a project that was just made up, and watches it answer.

Everything is what any client can do with curl: a channel with the agent in it, a project, a message, the channel's events. Exit
status 0 when the reply names the project, 1 when it does not or does not come, 2 when the graph cannot be reached.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from configs.environment import read_environment
from contracts.errors import ConfigurationError

AGENT = "agent:demo"
PERSON = "user:demo"
QUESTION = "Which projects does our microDAO have?"
FIRST = (
    "Amber",
    "Quiet",
    "Solar",
    "Northern",
    "Copper",
    "Silver",
    "Green",
    "Hidden",
    "Open",
    "Wild",
)
SECOND = (
    "Lighthouse",
    "River",
    "Garden",
    "Harbour",
    "Orchard",
    "Bridge",
    "Meadow",
    "Library",
    "Kitchen",
    "Harvest",
)
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""The ingress is on this machine: the environment's proxies have no say."""
TIMEOUT_S = 30.0
WAIT_S = 120.0
LAST_STEPS = {"stored", "failed"}


class DemoError(Exception):
    """The graph refused, or did something else than it should."""


@dataclass(frozen=True)
class Graph:
    """The graph's ingress."""

    base_url: str
    secret: str | None

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Returns the answer's JSON. Raises DemoError."""
        try:
            with _OPENER.open(
                self._request(method, path, body), timeout=TIMEOUT_S
            ) as answer:  # our own ingress
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise DemoError(
                f"{method} {path} was refused: {error.code} {error.read(500).decode('utf-8', 'replace')}"
            ) from None

    def events(self, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields name and data of each event, from now on; a sign of life in between comes as an event without a name."""
        with _OPENER.open(self._request("GET", path), timeout=WAIT_S) as answer:  # our own ingress
            name = "message"
            for raw in answer:
                field, _, value = raw.decode("utf-8").rstrip("\r\n").partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    yield name, json.loads(value)
                elif raw.startswith(b":"):
                    yield "", {}
                elif not field:
                    name = "message"

    def _request(self, method: str, path: str, body: Any = None) -> urllib.request.Request:
        headers = {"Content-Type": "application/json"} | (
            {"X-Internal-Secret": self.secret} if self.secret else {}
        )
        data = None if body is None else json.dumps(body).encode()
        return urllib.request.Request(  # noqa: S310
            self.base_url + path, data=data, headers=headers, method=method
        )  # our own ingress


def run(graph: Graph, agent: str, question: str, project: str) -> bool:
    """Plays the demo; returns whether the reply names the project. Raises DemoError or OSError."""
    started = time.monotonic()
    microdao = f"microdao:demo-{secrets.token_hex(4)}"

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {text}", flush=True)  # noqa: T201  # what the command is for

    graph.call("POST", "/internal/messaging/projects", {"name": project, "microdao_id": microdao})
    say(f"project    «{project}» in {microdao}")
    members = {"name": "demo", "microdao_id": microdao, "members": [PERSON, agent]}
    channel = graph.call("POST", "/internal/messaging/channels", members)["id"]
    say(f"channel    {channel} with {PERSON} and {agent}")
    path = f"/internal/messaging/channels/{channel}"
    threading.Timer(0.5, _ask, (graph, path, question)).start()
    named: bool | None = None
    for name, data in graph.events(f"{path}/events"):
        kind = data.get("step", data).get("kind")
        if name == "run.step":
            say(f"  {_step(data)}")
        elif name == "message.created":
            message = data.get("message", data)
            say(f"message    {message['sender_id']}: {message['body']}")
            if message["sender_id"] == agent:
                named = project in message["body"]
        elif name:
            say(f"{name} {json.dumps(data, ensure_ascii=False)}")
        # The last steps of a run are shown after its reply.
        if named is not None and (kind in LAST_STEPS or not name):
            return named
        if time.monotonic() - started > WAIT_S:
            break
    raise DemoError(f"no reply within {WAIT_S:g} s")


def _ask(graph: Graph, path: str, question: str) -> None:
    try:
        graph.call("POST", f"{path}/messages", {"sender_id": PERSON, "text": question})
    except (DemoError, OSError) as error:
        print(f"the question could not be asked: {error}", file=sys.stderr)  # noqa: T201


def _step(data: dict[str, Any]) -> str:
    step = data.get("step", data)
    detail = ", ".join(
        f"{key} {value}" for key, value in (step.get("detail") or {}).items() if value is not None
    )
    return f"{step.get('kind', '?'):<11} {detail}"


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="demo", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    parser.add_argument("--agent", default=AGENT)
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument(
        "--project",
        default=f"{secrets.choice(FIRST)} {secrets.choice(SECOND)} {secrets.randbelow(90) + 10}",
    )
    parser.add_argument(
        "--ingress", help="by default the one that DAARION_HOST and DAARION_PORT name"
    )
    given = parser.parse_args(argv)
    try:
        environment = read_environment()
        graph = Graph(
            (given.ingress or environment.ingress_url).rstrip("/"),
            environment.internal_secret or environment.admin_secret,
        )
        named = run(graph, given.agent, given.question, given.project)
    except (ConfigurationError, DemoError) as error:
        print(f"demo: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except OSError:
        print(  # noqa: T201
            f"demo: no graph answers at {graph.base_url}: start it with `make run` in another terminal, or set DAARION_PORT to its port",
            file=sys.stderr,
        )
        return 2
    print("the reply names the project" if named else "the reply does NOT name the project")  # noqa: T201
    return 0 if named else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
