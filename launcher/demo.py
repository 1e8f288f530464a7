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
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from httpx2 import AsyncClient, EventSource

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
LAST_STEPS_S = 15.0
"""How long the last steps of a run are awaited, which are shown after its reply."""


class DemoError(Exception):
    """The graph refused a request, or its answer is not the expected one."""


async def run(graph: AsyncClient, agent: str, question: str, project: str) -> bool:
    """Plays the demo; returns whether the reply names the project. Raises DemoError, HttpError or
    TimeoutError.
    """
    started = time.monotonic()
    microdao = f"microdao:demo-{secrets.token_hex(4)}"

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {text}", flush=True)  # noqa: T201  # its output

    await _post(graph, "projects", {"name": project, "microdao_id": microdao})
    say(f"project    «{project}» in {microdao}")
    members = {"name": "demo", "microdao_id": microdao, "members": [PERSON, agent]}
    channel = (await _post(graph, "channels", members))["id"]
    say(f"channel    {channel} with {PERSON} and {agent}")
    await _post(graph, f"channels/{channel}/messages", {"sender_id": PERSON, "text": question})
    named: bool | None = None
    try:
        async with (
            asyncio.timeout(WAIT_S) as bound,
            requested(graph, "GET", f"channels/{channel}/events?after=0") as response,
        ):
            async for event in EventSource(response):
                if not event.data:  # `retry:` alone, or a sign of life
                    continue
                data = json.loads(event.data)
                say(_line(event.event, data))
                message, step = data.get("message", data), data.get("step", data)
                if event.event == "message.created" and message["sender_id"] == agent:
                    named = project in message["body"]
                    bound.reschedule(asyncio.get_running_loop().time() + LAST_STEPS_S)
                if named is not None and step.get("kind") in LAST_STEPS:
                    return named
    except TimeoutError:
        if named is not None:
            return named
    raise DemoError("the channel's events ended without a reply")


async def _post(graph: AsyncClient, path: str, body: dict[str, Any]) -> Any:
    """Returns the answer's JSON. Raises DemoError, HttpError or TimeoutError."""
    async with asyncio.timeout(TIMEOUT_S), requested(graph, "POST", path, json=body) as response:
        answer = await read_bounded(response, MAX_ANSWER_BYTES)
    if not response.is_success:
        reason = answer[:500].decode("utf-8", "replace")
        with suppress(ValueError, TypeError, KeyError):
            reason = json.loads(answer)["error"]["message"]
        if response.status_code in {401, 403}:
            reason += (
                "; this command presents DAARION_INTERNAL_SECRET or DAARION_ADMIN_SECRET of its "
                "own environment"
            )
        raise DemoError(f"POST {path} was refused: {response.status_code} {reason}")
    return json.loads(answer)


def _line(name: str, data: dict[str, Any]) -> str:
    message, step = data.get("message", data), data.get("step", data)
    match name:
        case "run.step":
            detail = (step.get("detail") or {}).items()
            text = ", ".join(f"{key} {value}" for key, value in detail if value is not None)
            return f"  {step.get('kind', '?'):<11} {text}"
        case "message.created":
            return f"message    {message['sender_id']}: {message['body']}"
        case _:
            return f"{name} {json.dumps(data, ensure_ascii=False)}"


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="demo", description="asks the demo agent in a graph")
    parser.add_argument("--agent", default=AGENT)
    parser.add_argument("--question", default=QUESTION)
    name = f"{secrets.choice(FIRST)} {secrets.choice(SECOND)} {secrets.randbelow(90) + 10}"
    parser.add_argument("--project", default=name)
    parser.add_argument(
        "--ingress", help="by default the one that DAARION_HOST and DAARION_PORT name"
    )
    given = parser.parse_args(argv)
    try:
        return asyncio.run(_play(given))
    except (ConfigurationError, DemoError) as error:
        print(f"demo: {error}", file=sys.stderr)  # noqa: T201
        return 1


async def _play(given: argparse.Namespace) -> int:
    environment = read_environment()
    ingress = (given.ingress or environment.ingress_url).rstrip("/")
    secret = environment.internal_secret or environment.admin_secret
    headers = {"X-Internal-Secret": secret} if secret else {}
    async with open_client(base_url=f"{ingress}/internal/messaging/", headers=headers) as graph:
        try:
            named = await run(graph, given.agent, given.question, given.project)
        except (HttpError, TimeoutError):
            print(  # noqa: T201
                f"demo: no graph answers at {ingress}: start it with `make run` in another "
                "terminal, or set DAARION_PORT to its port",
                file=sys.stderr,
            )
            return 2
    print(f"the reply {'names' if named else 'does NOT name'} the project")  # noqa: T201
    return 0 if named else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
