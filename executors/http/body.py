"""Reads an answer's body while it streams, bounded after decoding."""

from __future__ import annotations

import zlib

import aiohttp

GZIP_OR_ZLIB = zlib.MAX_WBITS | 32


class BodyTooLarge(Exception):
    """The decoded body is over the bound."""


class BodyUndecodable(Exception):
    """The body has an encoding that was not asked for, or is broken in it."""


async def read_body(response: aiohttp.ClientResponse, limit: int) -> bytearray:
    """Returns the decoded body, at most `limit` bytes. The session must not decode by itself.

    Raises:
        BodyTooLarge, BodyUndecodable: see there; no more than one chunk beyond the limit was read by then.
        aiohttp.ClientError: the connection broke.
    """
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding == "identity" and (response.content_length or 0) > limit:
        raise BodyTooLarge
    decoder = _decoder(encoding)
    body = bytearray()
    async for chunk in response.content.iter_any():
        try:
            body += chunk if decoder is None else decoder.decompress(chunk, limit + 1 - len(body))
        except zlib.error:
            raise BodyUndecodable from None
        if len(body) > limit or (decoder is not None and decoder.unconsumed_tail):
            raise BodyTooLarge
    if decoder is not None and not decoder.eof:
        raise BodyUndecodable
    return body


def _decoder(encoding: str) -> zlib._Decompress | None:
    if encoding == "identity":
        return None
    if encoding in {"gzip", "x-gzip", "deflate"}:
        return zlib.decompressobj(GZIP_OR_ZLIB)
    raise BodyUndecodable
