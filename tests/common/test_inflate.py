"""Compressed bodies: of several members, in pieces, and hostile ones."""

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.http.inflate import PIECE_BYTES, Inflater, Undecodable


def bare_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def inflated(pieces, encoding="gzip", limit=1 << 30):
    """Returns the whole body from `pieces`; takes at most `limit` bytes."""
    inflater, found = Inflater(encoding), bytearray()
    for piece in pieces:
        inflater.feed(piece)
        while part := inflater.pending():
            assert len(part) <= PIECE_BYTES
            found += part
            if len(found) >= limit:
                return bytes(found)
    inflater.check_ended()
    return bytes(found)


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=6), st.integers(1, 64))
def test_members_are_one_body_however_it_is_cut(parts, size):
    raw = b"".join(gzip.compress(part, mtime=0) for part in parts)
    assert inflated(raw[start : start + size] for start in range(0, len(raw), size)) == b"".join(
        parts
    )


@pytest.mark.parametrize("pack", [zlib.compress, bare_deflate, gzip.compress])
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_deflate_comes_with_and_without_its_header(pack, size):
    plain = "їжак ".encode() * 5_000
    raw = pack(plain)
    assert (
        inflated((raw[start : start + size] for start in range(0, len(raw), size)), "deflate")
        == plain
    )


@given(st.integers(1, 3), st.integers(-300, 300), st.binary(min_size=1, max_size=5_000))
def test_a_body_about_as_long_as_whole_pieces_is_whole(pieces, more, pattern):
    """zlib may have taken all input and still hold output, or the end, when a piece is full."""
    size = pieces * PIECE_BYTES + more
    plain = (pattern * (size // len(pattern) + 1))[:size]
    assert inflated([bare_deflate(plain)], "deflate") == plain


@pytest.mark.parametrize(
    "tail",
    [
        b"\0",
        b"\0" * 4096,
        b"x",
        b"\x1f\x8b",
        gzip.compress(b"more", mtime=0)[:-1],
        b"GARBAGE" * 1000,
    ],
)
def test_bytes_behind_the_last_member_are_an_error(tail):
    with pytest.raises(Undecodable):
        inflated([gzip.compress(b"whole", mtime=0) + tail])


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"plain text",
        gzip.compress(b"whole", mtime=0)[:-1],
        gzip.compress(b"whole", mtime=0)[:-6] + b"wrong!",
    ],
)
def test_a_body_that_is_not_whole_is_an_error(raw):
    with pytest.raises(Undecodable):
        inflated([raw])


def test_encodings_that_are_not_known_are_refused():
    for encoding in ("br", "zstd", "gzip, gzip", ""):
        with pytest.raises(Undecodable):
            Inflater(encoding)


def test_a_bomb_is_decompressed_piece_by_piece():
    bomb = gzip.compress(bytes(64 << 20))
    assert len(inflated([bomb], limit=1 << 20)) == 1 << 20


@pytest.mark.parametrize(
    "one", [gzip.compress(b"", mtime=0), gzip.compress(b"a", mtime=0)], ids=["empty", "one byte"]
)
def test_many_nearly_empty_members_are_refused_early(one):
    with pytest.raises(Undecodable):
        inflated([one * 20_000])
    flushes = zlib.compressobj()
    empty_blocks = flushes.compress(b"") + b"".join(
        flushes.flush(zlib.Z_SYNC_FLUSH) + flushes.compress(b"") for _ in range(3)
    )
    assert inflated([empty_blocks + flushes.flush()], "deflate") == b""
