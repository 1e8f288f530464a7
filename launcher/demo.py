"""`python -m launcher.demo`: invents a project in a running graph, asks the demo agent about it,
and shows the answer.

Every step is one that any client can take with curl: a project, a channel with the agent in it, a
message, the channel's events. Exits with 0 if the reply names the project, 1 if it does not or does
not come, 2 if no graph answers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from common.http.client import open_client, read_bounded, requested
from common.http.errors import HttpError
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
MAX_ANSWER_BYTES = 8 << 20
TIMEOUT_S = 30.0
WAIT_S = 120.0
LAST_STEPS = {"stored", "failed"}


class DemoError(Exception):
    """The graph refused a request, or its answer is not the expected one."""


class IngressClient:
    """Calls the graph's ingress, directly whatever the environment's proxies."""

    def __init__(self, base_url: str, secret: str | None) -> None:
        headers = {"Content-Type": "application/json"}
        self._http = open_client(
            base_url=base_url, headers=headers | ({"X-Internal-Secret": secret} if secret else {})
        )

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """Returns the answer's JSON. Raises DemoError, HttpError or TimeoutError."""
        content = None if body is None else json.dumps(body).encode()
        async with (
            asyncio.timeout(TIMEOUT_S),
            requested(self._http, method, path, content=content) as response,
        ):
            answer = await read_bounded(response, MAX_ANSWER_BYTES)
        if not response.is_success:
            reason = answer[:500].decode("utf-8", "replace")
            raise DemoError(f"{method} {path} was refused: {response.status_code} {reason}")
        return json.loads(answer)

    async def events(self, path: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Yields name and data of each event from now on; a keep-alive comment is an event without
        a name.
        """
        async with requested(self._http, "GET", path) as response:
            if not response.is_success:
                raise DemoError(f"GET {path} was refused: {response.status_code}")
            name = "message"
            async for line in response.aiter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    yield name, json.loads(value)
                elif line.startswith(":"):
                    yield "", {}
                elif not field:
                    name = "message"

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()


async def run(graph: IngressClient, agent: str, question: str, project: str) -> bool:
    """Plays the demo; returns whether the reply names the project. Raises DemoError, HttpError or
    TimeoutError.
    """
    started = time.monotonic()
    microdao = f"microdao:demo-{secrets.token_hex(4)}"

    def say(text: str) -> None:
        seconds = time.monotonic() - started
        print(f"{seconds:6.1f} s  {text}", flush=True)  # noqa: T201  # its output

    new_project = {"name": project, "microdao_id": microdao}
    await graph.call("POST", "/internal/messaging/projects", new_project)
    say(f"project    «{project}» in {microdao}")
    members = {"name": "demo", "microdao_id": microdao, "members": [PERSON, agent]}
    channel = (await graph.call("POST", "/internal/messaging/channels", members))["id"]
    say(f"channel    {channel} with {PERSON} and {agent}")
    path = f"/internal/messaging/channels/{channel}"
    events = graph.events(f"{path}/events")
    try:
        async with asyncio.timeout(WAIT_S):
            await anext(events)  # it starts with a comment: from here on no event is missed
            message = {"sender_id": PERSON, "text": question}
            await graph.call("POST", f"{path}/messages", message)
            return await _named(events, agent, project, say)
    except TimeoutError:
        raise DemoError(f"no reply within {WAIT_S:g} s") from None


async def _named(
    events: AsyncIterator[tuple[str, dict[str, Any]]],
    agent: str,
    project: str,
    say: Callable[[str], None],
) -> bool:
    """Shows the channel's events until the agent's run has ended; returns whether its reply names
    the project.
    """
    named: bool | None = None
    async for name, data in events:
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
    raise DemoError("the channel's events ended before a reply")


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
        base_url = (given.ingress or environment.ingress_url).rstrip("/")
        secret = environment.internal_secret or environment.admin_secret
        named = asyncio.run(_play(base_url, secret, given))
    except (ConfigurationError, DemoError) as error:
        print(f"demo: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except (HttpError, TimeoutError):
        print(  # noqa: T201
            f"demo: no graph answers at {base_url}: start it with `make run` in another terminal, "
            "or set DAARION_PORT to its port",
            file=sys.stderr,
        )
        return 2
    verb = "names" if named else "does NOT name"
    print(f"the reply {verb} the project")  # noqa: T201
    return 0 if named else 1


async def _play(base_url: str, secret: str | None, given: argparse.Namespace) -> bool:
    graph = IngressClient(base_url, secret)
    try:
        return await run(graph, given.agent, given.question, given.project)
    finally:
        await graph.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
