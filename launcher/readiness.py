"""Watches `GET /health` until every part answers, and says meanwhile what is awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp

_POLL_S = 0.5
_REPEAT_S = 10.0
_READY_STATES = frozenset({"ready", "ok"})
_LONGEST = 240
_GRACE_S = 60.0
"""How long parts are waited for that the graph can do without, once everything else answers."""


async def until_ready(url: str, say: Callable[[str], None], grace_s: float = _GRACE_S) -> None:
    """Returns once every part behind `url` is ready; says what is not when that changes, and every 10 s.

    What the graph can do without is waited for, too, but not for ever: after `grace_s` it is named, and the graph goes on.
    """
    loop = asyncio.get_running_loop()
    said, said_at = "", -_REPEAT_S
    works_since: float | None = None
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=5), trust_env=False
    ) as client:
        while True:
            works, waiting = await _probe(client, url)
            if waiting is None:
                return
            works_since = (works_since or loop.time()) if works else None
            if works_since is not None and loop.time() - works_since >= grace_s:
                say(f"going on without {waiting}")
                return
            if waiting != said or loop.time() - said_at >= _REPEAT_S:
                said, said_at = waiting, loop.time()
                say(f"waiting for {waiting}")
            await asyncio.sleep(_POLL_S)


async def is_ready(url: str) -> str | None:
    """Returns None when every part behind `url` is ready, else what is not."""
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=5), trust_env=False
    ) as client:
        return (await _probe(client, url))[1]


async def _probe(client: aiohttp.ClientSession, url: str) -> tuple[bool, str | None]:
    """Whether the graph can be used, and what is awaited."""
    try:
        async with client.get(url, allow_redirects=False) as response:
            body = await response.json(content_type=None)
            if (
                response.status == 200
                and isinstance(body, dict)
                and body.get("status") in _READY_STATES
            ):
                return True, None
            return response.status == 200, describe(body)
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return False, "the ingress (no answer yet)"


def describe(body: Any) -> str:
    """Names the parts of a health answer that are not ready, with their state and reason; shortened to one line."""
    checks = body.get("checks") if isinstance(body, dict) else None
    if not isinstance(checks, dict):
        return "the applications (not deployed yet)"
    missing = [
        _part(name, check)
        for name, check in checks.items()
        if isinstance(check, dict) and check.get("state") not in _READY_STATES
    ]
    line = " ".join(", ".join(missing).split()) or "the applications"
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


def _part(name: str, check: dict[str, Any]) -> str:
    reason = f": {check['reason']}" if check.get("reason") else ""
    return f"{name} ({check.get('state', 'unknown')}{reason})"
