"""Reads an HTTP answer whole, up to a bound."""

from __future__ import annotations

import aiohttp


class BodyOverBound(Exception):
    """The answer is longer than whoever asked is ready to hold."""


async def read_whole(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Returns the body, however many pieces it comes in.

    Raises:
        BodyOverBound: it is longer than `limit` bytes; no more than one piece beyond them was read.
        aiohttp.ClientError: the connection broke.
    """
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > limit:
            raise BodyOverBound
    return bytes(body)
