"""The packed model file: its values, and that damage is a `FormatError`."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from modelbuild import e5_format
from modelbuild.e5_format import decode_q4, parse
from modelbuild.embedder import build_embedder
from modelbuild.errors import (
    FormatError,
)

REPOSITORY = Path(__file__).resolve().parents[2]

HIDDEN, WIDE, POSITIONS = 32, 64, 8
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "▁дім", "▁kit", "ten", "<mask>"]
ROWS = len(PIECES) + 1


def q4_block(scale: float, elements: list[int]) -> bytes:
    """One block from 32 integers between -8 and 7."""
    low, high = elements[:16], elements[16:]
    return struct.pack("<e", scale) + bytes(
        (a + 8) | (b + 8) << 4 for a, b in zip(low, high, strict=True)
    )


def q4_tensor(elements: int) -> tuple[int, int, bytes]:
    block = q4_block(0.25, [index % 16 - 8 for index in range(32)])
    return (e5_format.Q4, elements, block * (elements // 32))


def f32_tensor(elements: int) -> tuple[int, int, bytes]:
    return (e5_format.F32, elements, struct.pack(f"<{elements}f", *[0.5] * elements))


def tiny_tensors() -> dict[str, tuple[int, int, bytes]]:
    tensors = {
        "emb.word": q4_tensor(ROWS * HIDDEN),
        "emb.pos": f32_tensor(POSITIONS * HIDDEN),
        "emb.type": f32_tensor(2 * HIDDEN),
        "emb.ln.w": f32_tensor(HIDDEN),
        "emb.ln.b": f32_tensor(HIDDEN),
    }
    widths = {
        "q": (HIDDEN, HIDDEN),
        "k": (HIDDEN, HIDDEN),
        "v": (HIDDEN, HIDDEN),
        "ao": (HIDDEN, HIDDEN),
    }
    for short, (rows, columns) in (widths | {"fi": (WIDE, HIDDEN), "fo": (HIDDEN, WIDE)}).items():
        tensors[f"l0.{short}.w"] = q4_tensor(rows * columns)
        tensors[f"l0.{short}.b"] = f32_tensor(rows)
    for short in ("aln", "oln"):
        tensors[f"l0.{short}.w"] = tensors[f"l0.{short}.b"] = f32_tensor(HIDDEN)
    return tensors


def pack(tensors: dict[str, tuple[int, int, bytes]], pieces: list[str] = PIECES) -> bytes:
    encoded = [piece.encode() for piece in pieces]
    offsets = np.cumsum([0, *map(len, encoded)])
    head = e5_format.MAGIC + struct.pack("<7ifi", HIDDEN, 1, 2, WIDE, ROWS, POSITIONS, 2, 1e-12, 32)
    head += (
        struct.pack("<5iQ", len(pieces), 0, 2, 1, 3, offsets[-1]) + offsets.astype("<u4").tobytes()
    )
    head += np.linspace(0, -4, len(pieces), dtype="<f4").tobytes() + b"".join(encoded)
    head += struct.pack("<iI", 1, 5) + struct.pack("<IB", 9, 0)
    directory_size = 4 + sum(2 + len(name) + 21 for name in tensors)
    at, directory, body = len(head) + directory_size, struct.pack("<i", len(tensors)), b""
    for name, (dtype, elements, raw) in tensors.items():
        directory += (
            struct.pack("<H", len(name))
            + name.encode()
            + struct.pack("<BIQQ", dtype, elements, at + len(body), len(raw))
        )
        body += raw
    return head + directory + body


TINY = pack(tiny_tensors())


def test_q4_block_holds_low_nibbles_first_then_high_ones():
    elements = [7, -8, 0, 1, *[2] * 12, -1, 3, *[-5] * 14]
    values = decode_q4(q4_block(0.5, elements) + q4_block(-2.0, [1] * 32))
    assert values.dtype == np.float16
    assert values[:32].tolist() == [element * 0.5 for element in elements]
    assert values[32:].tolist() == [-2.0] * 32


def test_q4_block_from_raw_bytes():
    raw = bytes.fromhex("0038") + bytes([0x0F, 0xF0]) + bytes([0x88]) * 14
    values = decode_q4(raw)
    assert values[:3].tolist() == [3.5, -4.0, 0.0]
    assert values[16:19].tolist() == [-4.0, 3.5, 0.0]


def test_partial_q4_block_is_refused():
    with pytest.raises(FormatError, match="whole Q4 blocks"):
        decode_q4(bytes(17))


def test_tiny_file_is_read_whole():
    model = parse(TINY)
    assert (model.geometry.hidden, model.geometry.intermediate, model.geometry.vocabulary) == (
        HIDDEN,
        WIDE,
        ROWS,
    )
    assert [piece for piece, _ in model.vocabulary.pieces] == PIECES
    assert (
        model.vocabulary.bos,
        model.vocabulary.eos,
        model.vocabulary.pad,
        model.vocabulary.unk,
    ) == (0, 2, 1, 3)
    assert model.vocabulary.pieces[-1][1] == pytest.approx(-4)
    assert model.tensor("emb.word", ROWS, HIDDEN)[1, :3].tolist() == [-2.0, -1.75, -1.5]
    assert model.tensor("emb.ln.w", HIDDEN).tolist() == [0.5] * HIDDEN


def test_value_beyond_float16_is_refused():
    tensors = tiny_tensors() | {
        "emb.ln.w": (e5_format.F32, HIDDEN, struct.pack(f"<{HIDDEN}f", *[1e6] * HIDDEN))
    }
    with pytest.raises(FormatError, match="beyond float16"):
        parse(pack(tensors)).tensor("emb.ln.w", HIDDEN)


def test_tensor_of_another_shape_or_name_is_refused():
    model = parse(TINY)
    with pytest.raises(FormatError, match="expected shape"):
        model.tensor("emb.word", ROWS, HIDDEN * 2)
    with pytest.raises(FormatError, match="missing"):
        model.tensor("l1.q.w", HIDDEN, HIDDEN)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: b"", "truncated"),
        (lambda data: b"GGUF" + data[4:], "magic"),
        (lambda data: data[:4] + b"\x02" + data[5:], "version"),
        (lambda data: data[:8] + struct.pack("<i", -1) + data[12:], "geometry"),
        (lambda data: data[:-1], "outside the file"),
        (lambda data: data.replace("▁дім".encode(), b"\xff" * 9), "utf-8"),
    ],
)
def test_a_damaged_file_has_an_error_of_its_own(damage: Callable[[bytes], bytes], reason: str):
    with pytest.raises(FormatError, match=reason):
        parse(damage(TINY))


@given(st.integers(0, len(TINY) - 1))
def test_every_truncation_is_a_format_error(length: int):
    with pytest.raises(FormatError):
        parse(TINY[:length])


@given(st.sampled_from([b"", e5_format.MAGIC]), st.binary(max_size=200))
def test_garbage_is_a_format_error(start: bytes, garbage: bytes):
    with pytest.raises(FormatError):
        parse(start + garbage)


@given(st.integers(0, len(TINY) - 5000), st.binary(min_size=1, max_size=8))
def test_overwritten_bytes_never_raise_anything_else(at: int, noise: bytes):
    try:
        model = parse(TINY[:at] + noise + TINY[at + len(noise) :])
        for name, entry in model.entries.items():
            model.tensor(name, entry.elements)
    except FormatError:
        pass


def test_embedder_folder_from_a_tiny_file(tmp_path: Path):
    (tmp_path / "packed").write_bytes(TINY)
    build_embedder(tmp_path / "packed", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float16)}
    assert weights["encoder.layer.0.intermediate.dense.weight"].shape == (WIDE, HIDDEN)
    assert weights["encoder.layer.0.output.dense.weight"].shape == (HIDDEN, WIDE)
    assert [
        module["type"].rsplit(".", 1)[1]
        for module in json.loads((tmp_path / "modules.json").read_text())
    ] == [
        "Transformer",
        "Pooling",
        "Normalize",
    ]
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("дім\u00a0 kitten").ids == [0, 5, 6, 7, 2]
    assert tokenizer.encode("щ<mask>").ids == [0, 4, 3, 8, 2]
