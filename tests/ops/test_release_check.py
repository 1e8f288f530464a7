"""`make release-check` names what a commit lacks to be a release."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PINS = "tests/stores/test_released_migrations.py"


def git(root, *arguments):
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", "-C", root, *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def release(tmp_path):
    """A repository whose commit may be tagged."""
    files = {
        "pyproject.toml": '[project]\nversion = "1.2.0"\n',
        "CHANGELOG.md": "# Changelog\n\n## 1.2.0 — 2026-11-30\n\n- x\n\n## 1.1.0 — unreleased\n",
        "backends/postgres/migrations/0001_first.sql": "SELECT 1;\n",
        PINS: 'RELEASED = {\n    "0001_first": "ab",\n}\n',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def commit(root):
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "x")


def check(root):
    command = [sys.executable, ROOT / "ops/release_check.py"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_a_release(release):
    assert check(release) == (0, "")


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("pyproject.toml", "1.2.0", "1.3.0", "pyproject.toml says 1.3.0, the changelog's top"),
        ("CHANGELOG.md", "2026-11-30", "unreleased", "date the changelog's entry: `## 1.2.0"),
        ("CHANGELOG.md", "## 1.2.0 — 2026-11-30", "", "the changelog's top entry 1.1.0"),
        (PINS, "0001_first", "0001_other", f"pin 0001_first in {PINS}"),
    ],
)
def test_what_files_lack(release, file, old, new, expected):
    path = release / file
    path.write_text(path.read_text().replace(old, new))
    commit(release)
    code, output = check(release)
    assert code == 1
    assert expected in output


def test_a_taken_tag_and_uncommitted_files(release):
    git(release, "tag", "v1.2.0")
    assert check(release) == (
        1,
        "not yet a release: v1.2.0 is tagged already: raise the version\n",
    )
    git(release, "tag", "--delete", "v1.2.0")
    (release / "left.txt").touch()
    assert check(release) == (
        1,
        "not yet a release: commit or remove what `git status` lists\n",
    )


def test_make_runs_the_checks_that_need_the_environment():
    plan = subprocess.run(
        ["make", "--dry-run", "release-check"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for step in (
        "ops/release_check.py",
        "pytest -q tests/ops/test_locks.py tests/ops/test_kuberay.py",
        "tests/stores/test_released_migrations.py",
        "bin/mypy",
        "cyclonedx-py environment",
    ):
        assert step in plan
