"""Bodies that are compressed as `gzip` or `deflate`, decompressed as they come and in bounded pieces. Pure.

A body may be several members, one after the other (RFC 1952, 2.2): together they are one body.
"""

from __future__ import annotations

import zlib

PIECE_BYTES = 256 << 10
"""The most that is decompressed at a time."""
ENCODINGS = frozenset({"gzip", "x-gzip", "deflate"})

_ZLIB, _GZIP = 0x08, 0x1F
_SLICE_BYTES = 4 << 10
"""How much is handed over at a time: what is left of it behind a member's end is copied, and there may be many members."""
_FREE_BYTES = 64 << 10
_MAX_INPUT_PER_OUTPUT = 4
"""A body that is much smaller when decompressed than it was before (empty members, empty blocks) only costs time."""


class Undecodable(Exception):
    """The body is not compressed as it says, has no end, or is mostly frames without content."""


class Inflater:
    """Decompresses one body: `feed` it, take `pending` until nothing comes, and `check_ended` at its end."""

    def __init__(self, encoding: str) -> None:
        """Raises Undecodable for an encoding other than `ENCODINGS` (lower case)."""
        if encoding not in ENCODINGS:
            raise Undecodable
        self._deflate = encoding == "deflate"
        self._member: zlib._Decompress | None = None
        self._input = memoryview(b"")
        self._holding = (
            False  # zlib may hold output, or the member's end, after it has taken all input
        )
        self._taken = self._given = 0

    def feed(self, data: bytes) -> None:
        """Takes compressed bytes."""
        self._input = memoryview(bytes(self._input) + data if self._input else data)

    def pending(self) -> bytes:
        """Returns what can be decompressed now, at most `PIECE_BYTES`; nothing where more input is needed. Raises Undecodable."""
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
        """Raises Undecodable where the body has no end."""
        if self._member is None or not self._member.eof:
            raise Undecodable

    def _window_bits(self) -> int:
        # `deflate` means zlib's format, but some servers leave its header out. No bare block begins like a header of zlib or gzip.
        first = self._input[0]
        bare = self._deflate and first & 0x0F != _ZLIB and first != _GZIP
        return -zlib.MAX_WBITS if bare else zlib.MAX_WBITS | 32
