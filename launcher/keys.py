"""`make key`: principals and their keys in a running graph.

Every step is a request below /internal/access (docs/access.md). A new key is written to standard
output, alone; what it may do goes to standard error. Exits with 0; with 1 where the graph refuses
or the environment is wrong; with 2 for wrong words, or where no graph answers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, get_args
from urllib.parse import quote

import yaml
from httpx2 import AsyncClient
from pydantic import ValidationError

from common.http.client import open_client, read_bounded, requested
from common.http.errors import HttpError
from configs.environment import read_environment
from contracts.access.keys import NewKey, key_hash, new_key
from contracts.access.principals import Application, Grants, PrincipalKind
from contracts.errors import ConfigurationError
from contracts.identity import MAX_PAGE

MAX_ANSWER_BYTES = 8 << 20
TIMEOUT_S = 30.0


class Refused(Exception):
    """The graph refuses, or what was asked for does not exist; one line says why."""


class Unknown(Refused):
    """There is no such principal."""


async def new(graph: AsyncClient, given: argparse.Namespace) -> None:
    """Creates a principal with a key; without a name, only makes up a key for `access.yaml`."""
    if given.name is None:
        key = new_key()
        _say(f"no graph knows this key yet; its SHA-256 is {key_hash(key.encode()).hex()}")
        print(key)
        return
    _key(given)  # before anything is created: a half-made principal would be in the way
    with suppress(Unknown):
        await _call(graph, "GET", given.name)
        raise Refused(f"{given.name} exists: `add` gives it a further key, `change` changes it")
    await _call(graph, "PUT", given.name, body=_grants(given))
    await add(graph, given)


async def add(graph: AsyncClient, given: argparse.Namespace) -> None:
    """Issues a further key."""
    await _issue(graph, given, "keys")


async def rotate(graph: AsyncClient, given: argparse.Namespace) -> None:
    """Issues a key; the present ones end after the grace period."""
    await _issue(graph, given, "rotate", grace_s=given.grace_hours * 3_600)
    _say(f"its other keys end within {given.grace_hours:g} hours")


async def change(graph: AsyncClient, given: argparse.Namespace) -> None:
    """Replaces the grants that are named; the others stay."""
    grants, wanted = (await _call(graph, "GET", given.name))["grants"], _grants(given)
    wanted["limits"] = {**grants.get("limits", {}), **wanted.get("limits", {})}
    print(_as_yaml(await _call(graph, "PUT", given.name, body={**grants, **wanted})))


async def show(graph: AsyncClient, given: argparse.Namespace) -> None:
    """Prints what a principal may do, and its live keys."""
    print(_as_yaml(await _call(graph, "GET", given.name)))


async def list_all(graph: AsyncClient, _given: argparse.Namespace) -> None:
    """Prints a line for each principal."""
    query: dict[str, Any] = {"limit": MAX_PAGE}
    while query:
        page = await _call(graph, "GET", query=query)
        for view in page["items"]:
            used = (
                f"{key['hint']} used {key.get('last_used_at', 'never')}" for key in view["keys"]
            )
            columns = view["name"], view["grants"].get("kind", "service"), view["origin"]
            print("{:<24} {:<9} {:<5}".format(*columns), ", ".join(used))
        cursor = page.get("next_cursor")
        query = {**query, "cursor": cursor} if cursor else {}


async def revoke(graph: AsyncClient, given: argparse.Namespace) -> None:
    """Ends one key now."""
    keys = (await _call(graph, "GET", given.name))["keys"]
    named = [
        key
        for key in keys
        if given.key == key["id"] or given.key.startswith(key["hint"].rstrip("…"))
    ]
    if len(named) != 1:
        live = ", ".join(f"{key['id']} ({key['hint']})" for key in keys) or "none"
        raise Refused(f"{given.key[:8]} names no live key of {given.name}; they are: {live}")
    await _call(graph, "DELETE", given.name, "keys", named[0]["id"])
    _say("revoked: within five seconds no replica takes this key")


async def remove(graph: AsyncClient, given: argparse.Namespace) -> None:
    """Removes a principal and its keys."""
    await _call(graph, "DELETE", given.name)
    _say("removed: within five seconds no replica takes its keys")


async def _issue(graph: AsyncClient, given: argparse.Namespace, route: str, **more: float) -> None:
    issued = await _call(graph, "POST", given.name, route, body=_key(given) | more)
    print(issued["key"])
    _say(f"This key of {given.name} is shown here alone; what it may do:")
    _say(_as_yaml((await _call(graph, "GET", given.name))["grants"]))
    _say(f"It ends: {issued.get('expires_at', 'when it is revoked')}")


async def _call(
    graph: AsyncClient, method: str, *path: str, body: Any = None, query: Any = None
) -> Any:
    """Returns the answer's JSON. Raises Refused, HttpError or TimeoutError."""
    url = "/".join(["principals", *(quote(part, safe="") for part in path)])
    async with (
        asyncio.timeout(TIMEOUT_S),
        requested(graph, method, url, params=query, json=body) as response,
    ):
        raw = await read_bounded(response, MAX_ANSWER_BYTES)
    try:
        answer = json.loads(raw or b"null")
        if response.is_success:
            return answer
        reason = " ".join(answer["error"]["message"].split())
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Refused(f"{response.url} answers {response.status_code}: is it a graph?") from None
    reason = reason.replace("GET /internal/access/principals lists them", "`make key ARGS=list`")
    if response.status_code in {401, 403}:
        reason += "; this command presents DAARION_ADMIN_SECRET of its own environment"
    raise (Unknown if response.status_code == 404 else Refused)(reason)


def _key(given: argparse.Namespace) -> dict[str, Any]:
    """Returns the body that asks for the key. Raises Refused."""
    wanted = {"label": given.label, "expires_in_days": given.days}
    try:
        return NewKey.model_validate(wanted).model_dump()
    except ValidationError as error:
        raise Refused(
            "; ".join(f"{mistake['loc'][0]}: {mistake['msg']}" for mistake in error.errors())
        ) from None


def _grants(given: argparse.Namespace) -> dict[str, Any]:
    """Returns the grants that the words name."""
    named = {name: getattr(given, name, None) for name in Grants.model_fields}
    named["limits"] = dict(given.limits) or None
    return {name: value for name, value in named.items() if value is not None}


def amount(text: str) -> tuple[str, Any]:
    """Returns name and value of a limit; `null` lifts it."""
    name, _, value = text.partition("=")
    return name, json.loads(value)


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip()


def _say(text: str) -> None:
    print(text, file=sys.stderr)


_MANY: dict[str, Any] = {"action": "append", "metavar": "ID"}
GRANTS: dict[str, dict[str, Any]] = {
    "--kind": {"choices": get_args(PrincipalKind), "help": "default: service"},
    "--agent": {**_MANY, "dest": "agents", "help": "whom it may act as; an id, or a prefix with *"},
    "--microdao": {**_MANY, "dest": "microdaos", "help": "where it may act; an id or a prefix"},
    "--application": {
        "dest": "applications",
        "action": "append",
        "choices": get_args(Application),
        "help": "default: all",
    },
    "--model": {**_MANY, "dest": "models", "help": "default: all"},
    "--tool": {**_MANY, "dest": "tools", "help": "default: all"},
    "--reply-subject": {**_MANY, "dest": "reply_subjects", "help": "on NATS, for its answers"},
    "--limit": {
        "dest": "limits",
        "action": "append",
        "default": [],
        "type": amount,
        "metavar": "NAME=AMOUNT",
        "help": "such as requests_per_minute=60 or usd_per_day=5; null lifts it",
    },
    "--max-cost-per-run": {"type": float, "metavar": "USD", "help": "of one run of an agent"},
}
KEY: dict[str, dict[str, Any]] = {
    "--days": {"type": float, "help": "the key's life; default: until it is revoked"},
    "--label": {"default": "", "help": "what the key is for"},
}
NAME: dict[str, dict[str, Any]] = {"name": {"help": "the principal"}}
WORDS: dict[str, tuple[Any, dict[str, dict[str, Any]]]] = {
    "new": (new, {"name": {"nargs": "?", "help": "the principal"}, **GRANTS, **KEY}),
    "list": (list_all, {}),
    "show": (show, NAME),
    "change": (change, {**NAME, **GRANTS}),
    "add": (add, {**NAME, **KEY}),
    "rotate": (
        rotate,
        {**NAME, **KEY, "--grace-hours": {"type": float, "default": 24.0, "help": "default: 24"}},
    ),
    "revoke": (revoke, {**NAME, "key": {"help": "its id, or its beginning as `show` prints it"}}),
    "remove": (remove, NAME),
}


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    given = _parsed(argv)
    try:
        environment = read_environment()
        ingress = (given.ingress or environment.ingress_url).rstrip("/")
        asyncio.run(_run(given, ingress, environment.admin_secret))
    except (HttpError, TimeoutError):
        _say(
            f"key: no graph answers at {ingress}: start it with `make run` in another terminal, "
            "or set DAARION_PORT to its port"
        )
        return 2
    except (ConfigurationError, Refused) as error:
        _say(f"key: {error}")
        return 1
    return 0


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="key",
        description="Principals and their keys in a running graph.",
        epilog="For example: new sofia-bot --kind agent --agent agent:sofia --microdao microdao:7",
    )
    parser.add_argument("--ingress", help="default: where DAARION_HOST and DAARION_PORT say")
    words = parser.add_subparsers(required=True, metavar="WORD", help="each has its own --help")
    for word, (run, arguments) in WORDS.items():
        found = words.add_parser(word, help=run.__doc__, description=run.__doc__)
        found.set_defaults(run=run)
        for name, options in arguments.items():
            found.add_argument(name, **options)
    return parser.parse_args(argv)


async def _run(given: argparse.Namespace, ingress: str, secret: str | None) -> None:
    headers = {"X-Internal-Secret": secret} if secret else None
    async with open_client(base_url=f"{ingress}/internal/access/", headers=headers) as graph:
        await given.run(graph, given)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
