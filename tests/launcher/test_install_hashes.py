"""The installer with the real pip: the build of torch that it takes, and changed files."""

import base64
import hashlib
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from launcher.install import PYTHON, Installer, InstallFailed


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """Makes an index that is the only source of packages for pip."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def build(index: Path, version: str, content: str = "") -> str:
    """Puts a wheel of `torch` into the index; returns its SHA-256."""
    path = index / f"torch-{version}-py3-none-any.whl"
    metadata = f"torch-{version}.dist-info"
    files = {
        "torch.py": content,
        f"{metadata}/METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n",
        f"{metadata}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},{record_hash(text)},{len(text)}\n" for name, text in files.items())
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in {**files, f"{metadata}/RECORD": record}.items():
            wheel.writestr(zipfile.ZipInfo(name), text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def record_hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256={base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def repository(folder: Path, cpu: str, general: str) -> Path:
    """A repository whose locks name torch 2.0.0+cpu and torch 2.0.0 with these hashes."""
    locks = folder / "repository/ops/locks"
    locks.mkdir(parents=True)
    for lock, version, sha256 in (("cpu", "2.0.0+cpu", cpu), ("general", "2.0.0", general)):
        text = f"torch==={version} \\\n    --hash=sha256:{sha256}\n"
        (locks / f"{lock}-{PYTHON}.lock").write_text(text)
    return folder / "repository"


def installed(repository: Path) -> str:
    code = "import importlib.metadata as m; print(m.version('torch'))"
    python = repository / ".venv/bin/python"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def test_the_cpu_build_is_taken_where_pip_finds_it_and_a_changed_file_is_refused(tmp_path, index):
    cpu, general = build(index, "2.0.0+cpu"), build(index, "2.0.0")
    product = repository(tmp_path, cpu, general)
    build(index, "2.0.0+cpu", "changed = True")
    with pytest.raises(InstallFailed, match=r"installing 1 packages .* failed"):
        Installer(product).ensure("cpu", project=False)
    assert installed(product) == ""
    assert build(index, "2.0.0+cpu") == cpu
    Installer(product).ensure("cpu", project=False)
    assert installed(product) == "2.0.0+cpu"


def test_the_general_lock_takes_the_general_build_and_never_another(tmp_path, index):
    """pip prefers another build of the same version; `===` excludes it."""
    general = build(index, "2.0.0")
    build(index, "2.0.0+other")
    product = repository(tmp_path, "0" * 64, general)
    Installer(product).ensure("cpu", project=False)
    assert installed(product) == "2.0.0"
