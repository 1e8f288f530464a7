"""The real model folders: built when they are missing, refused when their answers differ from
the pinned ones."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from configs.engines import config, embedder

REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.models, pytest.mark.timeout(600)]


def modelbuild(
    data_dir: Path, *options: str, timeout_s: float = 500, **variables: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "modelbuild", "--data-dir", str(data_dir), *options]
    environment = os.environ | variables
    return subprocess.run(
        command,
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@pytest.fixture(scope="module")
def data_dir() -> Path:
    """The data directory of the tests, with both models built."""
    folder = Path(os.environ.get("DAARION_DATA_DIR") or REPOSITORY / ".data").absolute()
    done = modelbuild(folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def copy(data_dir: Path, tmp_path: Path) -> Path:
    """The parent of both folders, in a data directory of their own.

    Big files are links, so a test replaces files and never edits them.
    """
    for folder in (config.DEFAULT_FOLDER, embedder.DEFAULT_FOLDER):
        shutil.copytree(data_dir / folder, tmp_path / folder, copy_function=_link)
    return tmp_path / "models"


def _link(source: str, target: str) -> None:
    Path(target).symlink_to(source)


def test_models_answer_as_pinned(data_dir: Path):
    done = modelbuild(data_dir, "--check", "--verify")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("checking answers … done in") == 2


def test_finished_models_are_recognised_quickly(data_dir: Path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = modelbuild(data_dir)
    assert done.stdout.strip() == "[models] ready: smollm2-135m-instruct, multilingual-e5-small"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
    )  # CPU seconds: torch alone takes more to import


@pytest.mark.parametrize(
    ("file", "value", "other", "complaint"),
    [
        (
            "smollm2-135m-instruct/config.json",
            '"num_hidden_layers": 30',
            '"num_hidden_layers": 2 ',
            "capital of France",
        ),
        (
            "multilingual-e5-small/1_Pooling/config.json",
            '"pooling_mode_mean_tokens"',
            '"pooling_mode_max_tokens" ',
            "cosine",
        ),
    ],
)
def test_model_with_other_answers_is_refused(
    copy: Path, tmp_path: Path, file: str, value: str, other: str, complaint: str
):
    # The length is unchanged, so only the check of the answers can detect it.
    config = copy / file
    content = config.read_text()
    assert value in content
    config.unlink()
    config.write_text(content.replace(value, other))
    done = modelbuild(tmp_path, "--check")
    assert done.returncode == 1
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (copy / file.split("/", maxsplit=1)[0] / "manifest.json").exists()
