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


async def until_ready(url: str, say: Callable[[str], None]) -> None:
    """Returns once `url` answers 200; says what is not ready when that changes, and every 10 s."""
    loop = asyncio.get_running_loop()
    said, said_at = "", -_REPEAT_S
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5), trust_env=False) as client:
        while (waiting := await _probe(client, url)) is not None:
            if waiting != said or loop.time() - said_at >= _REPEAT_S:
                said, said_at = waiting, loop.time()
                say(f"waiting for {waiting}")
            await asyncio.sleep(_POLL_S)


async def is_ready(url: str) -> str | None:
    """Returns None when `url` answers 200, else what is awaited."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5), trust_env=False) as client:
        return await _probe(client, url)


async def _probe(client: aiohttp.ClientSession, url: str) -> str | None:
    try:
        async with client.get(url, allow_redirects=False) as response:
            if response.status == 200:
                return None
            return describe(await response.json(content_type=None))
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return "the ingress (no answer yet)"


def describe(body: Any) -> str:
    """Names the parts of a health answer that are not ready, with their state and reason; shortened to one line."""
    checks = body.get("checks") if isinstance(body, dict) else None
    if not isinstance(checks, dict):
        return "the applications (not deployed yet)"
    missing = [_part(name, check) for name, check in checks.items() if isinstance(check, dict) and check.get("state") not in _READY_STATES]
    line = " ".join(", ".join(missing).split()) or "the applications"
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


def _part(name: str, check: dict[str, Any]) -> str:
    reason = f": {check['reason']}" if check.get("reason") else ""
    return f"{name} ({check.get('state', 'unknown')}{reason})"
