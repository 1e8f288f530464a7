"""Public keys of an identity provider, read over HTTP or from a file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import jwt

from common.http.client import open_client, read_bounded, requested
from common.http.errors import HttpError
from contracts.errors import Unavailable, Unreachable

TIMEOUT_S = 5.0
MAX_BODY_BYTES = 1 << 20


async def read_keys(proxy_for: Callable[[str], str | None], location: str) -> jwt.PyJWKSet:
    """Returns the keys at a URL, or in the file of an absolute path.

    `proxy_for` returns the forward proxy for a URL, if there is one.

    Raises Unreachable, or Unavailable where no usable key is found.
    """
    try:
        async with asyncio.timeout(TIMEOUT_S):
            body = await _read(proxy_for, location)
        return jwt.PyJWKSet.from_json(body.decode())
    except (HttpError, OSError):
        raise Unreachable("the identity provider's keys cannot be read") from None
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError, LookupError):
        raise Unavailable("the identity provider did not answer with a usable key set") from None


async def _read(proxy_for: Callable[[str], str | None], location: str) -> bytes:
    if location.startswith("/"):
        return await asyncio.to_thread(Path(location).read_bytes)
    async with (
        open_client(proxy=proxy_for(location)) as client,
        requested(client, "GET", location) as response,
    ):
        return await read_bounded(response, MAX_BODY_BYTES)
