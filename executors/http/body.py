"""Reads an answer's body as it streams; the bound counts decoded bytes."""

from __future__ import annotations

import asyncio

import aiohttp

from common.inflate import Inflater


class BodyTooLarge(Exception):
    """The decoded body is over the bound."""


async def read_body(response: aiohttp.ClientResponse, limit: int) -> bytearray:
    """Returns the decoded body, at most `limit` bytes. The session must not decode by itself.

    Raises:
        BodyTooLarge: at most one piece beyond the limit was decoded.
        Undecodable: an encoding that was not requested, or a body that is not valid in it.
        aiohttp.ClientError: the connection broke.
    """
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding == "identity" and (response.content_length or 0) > limit:
        raise BodyTooLarge
    inflater = None if encoding == "identity" else Inflater(encoding)
    body = bytearray()
    async for chunk in response.content.iter_any():
        if inflater is None:
            _append(body, chunk, limit)
            continue
        inflater.feed(chunk)
        while piece := inflater.pending():
            _append(body, piece, limit)
            # A chunk may inflate a thousandfold: let other tasks run in between.
            await asyncio.sleep(0)
    if inflater is not None:
        inflater.check_ended()
    return body


def _append(body: bytearray, piece: bytes, limit: int) -> None:
    if len(body) + len(piece) > limit:
        raise BodyTooLarge
    body += piece
