"""The manifest of a finished model folder: its source, and each file's size and checksum.

It is written last: a folder without a valid manifest is unfinished.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from contracts.shapes import Strict
from modelbuild.sources import Wheel, sha256_of

MANIFEST = "manifest.json"


class FileRecord(Strict):
    """One file of the folder."""

    bytes: int
    sha256: str


class Manifest(Strict):
    """`files` maps paths relative to the folder to their size and checksum."""

    wheel: str
    wheel_sha256: str
    recipe_version: int
    files: dict[str, FileRecord]


def write_manifest(folder: Path, wheel: Wheel, recipe_version: int) -> None:
    """Records every file of the folder."""
    files = {
        file.relative_to(folder).as_posix(): FileRecord(
            bytes=file.stat().st_size, sha256=sha256_of(file)
        )
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }
    manifest = Manifest(
        wheel=wheel.requirement,
        wheel_sha256=wheel.sha256,
        recipe_version=recipe_version,
        files=files,
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def find_problem(
    folder: Path, wheel: Wheel, recipe_version: int, *, rehash: bool = False
) -> str | None:
    """Returns why the folder cannot be used, or None if it is finished and whole.

    Compares the manifest with the pins and with every file's size, with `rehash` also its checksum.
    """
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except OSError:
        return "it was not finished"
    except ValidationError:
        return "its manifest is unreadable"
    if (manifest.wheel, manifest.wheel_sha256) != (wheel.requirement, wheel.sha256):
        return "it was built from another wheel"
    if manifest.recipe_version != recipe_version:
        return "it was built by another version of the recipe"
    damaged = next(
        (
            name
            for name, record in manifest.files.items()
            if not _matches(folder / name, record, rehash=rehash)
        ),
        None,
    )
    return f"{damaged} is missing or damaged" if damaged else None


def _matches(file: Path, record: FileRecord, *, rehash: bool) -> bool:
    try:
        return file.stat().st_size == record.bytes and (
            not rehash or sha256_of(file) == record.sha256
        )
    except OSError:
        return False
