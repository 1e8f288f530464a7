"""Decompresses `gzip` and `deflate` bodies while they arrive, in bounded pieces.

A body may be several members, one after the other (RFC 1952, 2.2): together they are one body.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterable, AsyncIterator

PIECE_BYTES = 256 << 10
"""The largest decompressed piece."""
ENCODINGS = frozenset({"gzip", "x-gzip", "deflate"})

_ZLIB, _GZIP = 0x08, 0x1F
_SLICE_BYTES = 4 << 10
"""Input per call of zlib: it copies what follows a member's end, and there may be many members."""
_FREE_BYTES = 64 << 10
_MAX_INPUT_PER_OUTPUT = 4
"""Input beyond this many times the output (empty members, empty blocks) only costs time."""


class Undecodable(Exception):
    """The body is not compressed as its header says, has no end, or is mostly empty frames."""


class Inflater:
    """Decompresses one body: `feed` it, take `pending` until empty, then `check_ended`."""

    def __init__(self, encoding: str) -> None:
        """Raises Undecodable for an encoding other than `ENCODINGS` (lower case)."""
        if encoding not in ENCODINGS:
            raise Undecodable
        self._deflate = encoding == "deflate"
        self._member: zlib._Decompress | None = None
        self._input = memoryview(b"")
        # zlib may hold output, or the member's end, after it has taken all input.
        self._holding = False
        self._taken = self._given = 0

    def feed(self, data: bytes) -> None:
        """Takes compressed bytes."""
        self._input = memoryview(bytes(self._input) + data if self._input else data)

    def pending(self) -> bytes:
        """Returns at most `PIECE_BYTES` of output, or nothing if more input is needed.

        Raises Undecodable.
        """
        while self._input or self._holding:
            if self._member is None or self._member.eof:
                self._member = zlib.decompressobj(self._window_bits())
            part = self._input[:_SLICE_BYTES]
            try:
                piece = self._member.decompress(part, PIECE_BYTES)
            except zlib.error:
                raise Undecodable from None
            taken = len(part) - len(self._member.unconsumed_tail) - len(self._member.unused_data)
            self._input = self._input[taken:]
            self._holding = len(piece) == PIECE_BYTES and not self._member.eof
            self._taken += taken
            self._given += len(piece)
            if self._taken > _FREE_BYTES + _MAX_INPUT_PER_OUTPUT * self._given:
                raise Undecodable
            if piece:
                return piece
        return b""

    def check_ended(self) -> None:
        """Raises Undecodable if the body has no end."""
        if self._member is None or not self._member.eof:
            raise Undecodable

    def _window_bits(self) -> int:
        # `deflate` means zlib's format, but some servers leave its header out. A bare block never
        # starts like a header of zlib or gzip.
        first = self._input[0]
        bare = self._deflate and first & 0x0F != _ZLIB and first != _GZIP
        return -zlib.MAX_WBITS if bare else zlib.MAX_WBITS | 32


async def inflated(pieces: AsyncIterable[bytes], encoding: str | None) -> AsyncIterator[bytes]:
    """Yields a body decompressed, in pieces of at most `PIECE_BYTES`; uncompressed pieces
    unchanged.

    `encoding` is the `Content-Encoding` header. Raises Undecodable.
    """
    encoding = (encoding or "identity").strip().lower()
    if encoding == "identity":
        async for piece in pieces:
            yield piece
        return
    inflater = Inflater(encoding)
    async for received in pieces:
        inflater.feed(received)
        while piece := inflater.pending():
            yield piece
            # Input may grow a thousandfold: other tasks get their turn.
            await asyncio.sleep(0)
    inflater.check_ended()
