"""Polls `GET /health` until every part is ready, and says meanwhile which ones are not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx2

from common.http.client import open_client, read_bounded, requested
from common.http.errors import HttpError

_POLL_S = 0.5
_REPEAT_S = 10.0
_READY_STATES = frozenset({"ready", "asleep", "ok"})
_LONGEST = 240
_PROBE_S = 5.0
_MAX_BODY_BYTES = 1 << 20
_GRACE_S = 60.0
"""How long optional parts are awaited once everything else is ready."""


async def until_ready(
    url: str, secret: str | None, say: Callable[[str], None], grace_s: float = _GRACE_S
) -> None:
    """Returns once every part behind `url` is ready; says which are not when that changes, and
    every 10 s.

    Optional parts are awaited for `grace_s` only; then they are named, and the graph continues
    without them. The parts are shown to whoever presents `secret`, where one is demanded.
    """
    loop = asyncio.get_running_loop()
    said, said_at = "", -_REPEAT_S
    works_since: float | None = None
    async with open_client() as client:
        while True:
            works, waiting = await _probe(client, url, secret)
            if waiting is None:
                return
            works_since = (works_since or loop.time()) if works else None
            if works_since is not None and loop.time() - works_since >= grace_s:
                say(f"continuing without {waiting}")
                return
            if waiting != said or loop.time() - said_at >= _REPEAT_S:
                said, said_at = waiting, loop.time()
                say(f"waiting for {waiting}")
            await asyncio.sleep(_POLL_S)


async def is_ready(url: str, secret: str | None) -> str | None:
    """Returns None when every part behind `url` is ready, else which are not."""
    async with open_client() as client:
        return (await _probe(client, url, secret))[1]


async def _probe(
    client: httpx2.AsyncClient, url: str, secret: str | None
) -> tuple[bool, str | None]:
    """Returns whether the graph can be used, and which parts are awaited."""
    headers = {"X-Internal-Secret": secret} if secret else {}
    try:
        async with (
            asyncio.timeout(_PROBE_S),
            requested(client, "GET", url, headers=headers) as response,
        ):
            body = json.loads(await read_bounded(response, _MAX_BODY_BYTES))
    except (HttpError, TimeoutError, ValueError):
        return False, "the ingress (no answer yet)"
    works = response.status_code == 200
    if works and isinstance(body, dict) and body.get("status") in _READY_STATES:
        return True, None
    return works, describe(body)


def describe(body: Any) -> str:
    """Returns one line: the parts of a health answer that are not ready, with state and reason."""
    checks = body.get("checks") if isinstance(body, dict) else None
    if not isinstance(checks, dict):
        return "the applications (not deployed yet)"
    missing = ", ".join(
        f"{name} ({check.get('state', 'unknown')}"
        f"{f': {reason}' if (reason := check.get('reason')) else ''})"
        for name, check in checks.items()
        if isinstance(check, dict) and check.get("state") not in _READY_STATES
    )
    line = " ".join(missing.split()) or "the applications"
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"
