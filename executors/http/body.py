"""Reads an answer's body as it streams; the bound counts decoded bytes."""

from __future__ import annotations

import aiohttp

from common.http.inflate import inflated


class BodyTooLarge(Exception):
    """The decoded body is over the bound."""


async def read_body(response: aiohttp.ClientResponse, limit: int) -> bytearray:
    """Returns the decoded body, at most `limit` bytes. The session must not decode by itself.

    Raises:
        BodyTooLarge: at most one piece beyond the limit was decoded.
        Undecodable: an encoding that was not requested, or a body that is not valid in it.
        aiohttp.ClientError: the connection broke.
    """
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.strip().lower() == "identity" and (response.content_length or 0) > limit:
        raise BodyTooLarge
    body = bytearray()
    async for piece in inflated(response.content.iter_any(), encoding):
        if len(body) + len(piece) > limit:
            raise BodyTooLarge
        body += piece
    return body
