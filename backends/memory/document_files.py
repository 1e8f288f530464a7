"""The knowledge base's folders: finds and reads Markdown and text files, inside their tree only."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from contracts.memory.administration import RefusedFile
from contracts.memory.background import DocumentFile, UnreadableFile
from contracts.values import is_storable

SUFFIXES = frozenset({".md", ".markdown", ".txt", ".rst"})
MAX_FILES = 100_000
MAX_REFUSED = 1_000


class DocumentFiles:
    """Implements DocumentFolders for `microdaos`, the folder that holds the microDAOs' folders."""

    def __init__(self, microdaos: Path, max_bytes: int) -> None:
        self._microdaos = microdaos
        self._max_bytes = max_bytes

    async def of_microdaos(self) -> dict[str, list[Path]]:
        return await asyncio.to_thread(_microdao_folders, self._microdaos)

    async def scan(self, folder: Path) -> tuple[list[DocumentFile], list[RefusedFile]]:
        return await asyncio.to_thread(_scan, folder, self._max_bytes)

    async def read(self, folder: Path, file: DocumentFile) -> tuple[str, bytes]:
        return await asyncio.to_thread(_read, folder, file, self._max_bytes)

    async def remove(self, folder: Path) -> None:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _microdao_folders(root: Path) -> dict[str, list[Path]]:
    """Returns the folders by microDAO. Symbolic links and names that are not UTF-8 are skipped."""
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError:
        return {}
    found: dict[str, list[Path]] = {}
    for entry in entries:
        microdao_id = unquote(entry.name)
        if entry.is_dir(follow_symlinks=False) and is_storable(f"{entry.name}{microdao_id}"):
            found.setdefault(microdao_id, []).append(Path(entry.path))
    return found


def _scan(root: Path, max_bytes: int) -> tuple[list[DocumentFile], list[RefusedFile]]:
    files: list[DocumentFile] = []
    refused: list[RefusedFile] = []
    if root.is_symlink():
        return [], [RefusedFile(path=".", reason="the folder itself is a symbolic link")]
    for entry in _walk(root):
        path = Path(entry.path).relative_to(root).as_posix()
        reason = _refusal(entry, max_bytes)
        if reason is None and len(files) < MAX_FILES:
            status = entry.stat(follow_symlinks=False)
            files.append(DocumentFile(path, status.st_size, status.st_mtime_ns))
        elif reason != "" and len(refused) < MAX_REFUSED:
            refused.append(RefusedFile(path=_shown(path), reason=reason or "too many files"))
    return files, refused


def _read(root: Path, file: DocumentFile, max_bytes: int) -> tuple[str, bytes]:
    data = _read_bytes(root, file.path, max_bytes)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableFile(f"not UTF-8 (byte {error.start})") from None
    if not is_storable(text):
        raise UnreadableFile("contains NUL characters")
    return text, hashlib.sha256(data).digest()


def _walk(root: Path) -> Iterator[os.DirEntry[str]]:
    """Yields everything but directories and hidden entries, without following links."""
    pending = [root]
    while pending:
        folder = pending.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                pending.append(Path(entry.path))
            else:
                yield entry


def _refusal(entry: os.DirEntry[str], max_bytes: int) -> str | None:
    """Returns None for a readable file, "" for another suffix, else why the file is refused."""
    if entry.is_symlink():
        return "a symbolic link"
    if Path(entry.name).suffix.lower() not in SUFFIXES:
        return ""
    if not is_storable(entry.name):
        return "its name is not UTF-8"
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError as error:
        return _reason(error)
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    return f"larger than {max_bytes} bytes" if status.st_size > max_bytes else None


def _read_bytes(root: Path, path: str, max_bytes: int) -> bytes:
    """Opens the path component by component, none through a symbolic link.

    So a file that is replaced by a link after the scan does not lead out of the tree.
    """
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        for part in path.split("/")[:-1]:
            descriptor = _step(descriptor, part, os.O_DIRECTORY)
        descriptor = _step(descriptor, path.rsplit("/", 1)[-1], os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UnreadableFile("not a regular file")
        with os.fdopen(os.dup(descriptor), "rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise UnreadableFile(_reason(error)) from None
    finally:
        os.close(descriptor)
    if len(data) > max_bytes:
        raise UnreadableFile(f"larger than {max_bytes} bytes")
    return data


def _step(descriptor: int, name: str, flags: int) -> int:
    """Opens `name` in an open directory and closes the directory, unless opening fails."""
    opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | flags, dir_fd=descriptor)
    os.close(descriptor)
    return opened


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()


def _shown(path: str) -> str:
    return path.encode("utf-8", "replace").decode().replace("\0", "?")
