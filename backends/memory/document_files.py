"""The knowledge base's folders: finds and reads documents, inside their tree only."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote

from contracts.errors import Conflict, Unavailable
from contracts.memory.administration import RefusedFile
from contracts.memory.background import DocumentFile, UnreadableFile
from contracts.memory.documents import MAX_DOCUMENTS, PLAIN, kind_of
from contracts.values import is_storable

MAX_REFUSED = 1_000
DRAFT = ".upload-"
DRAFT_S = 3_600.0
IN_THE_WAY = frozenset({errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG})


class DocumentFiles:
    """Implements DocumentFolders for `microdaos`, the folder that holds the microDAOs' folders.

    `plain_bytes` bounds files that are read as they are, `other_bytes` those that are converted.
    """

    def __init__(self, microdaos: Path, plain_bytes: int, other_bytes: int) -> None:
        self._microdaos = microdaos
        self._plain_bytes = plain_bytes
        self._other_bytes = other_bytes

    def most_bytes(self, path: str) -> int:
        return self._plain_bytes if kind_of(path) in PLAIN else self._other_bytes

    def home(self, microdao_id: str) -> Path:
        name = quote(microdao_id, safe="")
        return self._microdaos / (f"%2E{name[1:]}" if name.startswith(".") else name)

    async def of_microdaos(self) -> dict[str, list[Path]]:
        return await asyncio.to_thread(_microdao_folders, self._microdaos)

    async def scan(self, folder: Path) -> tuple[list[DocumentFile], list[RefusedFile]]:
        return await asyncio.to_thread(_scan, folder, self.most_bytes)

    async def find(self, folders: Sequence[Path], path: str) -> tuple[Path, DocumentFile] | None:
        return await asyncio.to_thread(_find, folders, path, self.most_bytes(path))

    async def read(self, folder: Path, file: DocumentFile) -> tuple[bytes, bytes]:
        data = await asyncio.to_thread(_read, folder, file.path, self.most_bytes(file.path))
        return data, await asyncio.to_thread(lambda: hashlib.sha256(data).digest())

    async def write(self, microdao_id: str, path: str, data: bytes) -> DocumentFile:
        with _translated(path):
            return await asyncio.to_thread(_write, self.home(microdao_id), path, data)

    async def unlink(self, folder: Path, path: str) -> bool:
        with _translated(path):
            return await asyncio.to_thread(_unlink, folder, path)

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


def _scan(
    root: Path, most_bytes: Callable[[str], int]
) -> tuple[list[DocumentFile], list[RefusedFile]]:
    files: list[DocumentFile] = []
    refused: list[RefusedFile] = []
    if os.path.islink(root):  # noqa: PTH114  # never raises
        return [], [RefusedFile(path=".", reason="the folder itself is a symbolic link")]
    for entry in _walk(root):
        path = Path(entry.path).relative_to(root).as_posix()
        reason = _refusal(entry, most_bytes(entry.name))
        if reason is None and len(files) < MAX_DOCUMENTS:
            status = entry.stat(follow_symlinks=False)
            files.append(DocumentFile(path, status.st_size, status.st_mtime_ns))
        elif reason != "" and len(refused) < MAX_REFUSED:
            refused.append(RefusedFile(path=_shown(path), reason=reason or "too many files"))
    return files, refused


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
                _sweep(entry)
                continue
            if entry.is_dir(follow_symlinks=False):
                pending.append(Path(entry.path))
            else:
                yield entry


def _sweep(entry: os.DirEntry[str]) -> None:
    """Removes the draft of an upload that failed."""
    with suppress(OSError):
        if entry.name.startswith(DRAFT) and time.time() - entry.stat().st_mtime > DRAFT_S:
            Path(entry.path).unlink()


def _refusal(entry: os.DirEntry[str], max_bytes: int) -> str | None:
    """Returns None for a readable file, "" for another suffix, else why the file is refused."""
    if entry.is_symlink():
        return "a symbolic link"
    if kind_of(entry.name) is None:
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


def _find(folders: Sequence[Path], path: str, max_bytes: int) -> tuple[Path, DocumentFile] | None:
    for folder in folders:
        with suppress(OSError), _open(folder, path) as file:
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode) and status.st_size <= max_bytes:
                return folder, DocumentFile(path, status.st_size, status.st_mtime_ns)
    return None


def _read(root: Path, path: str, max_bytes: int) -> bytes:
    try:
        with _open(root, path) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UnreadableFile("not a regular file")
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise UnreadableFile(_reason(error)) from None
    if len(data) > max_bytes:
        raise UnreadableFile(f"larger than {max_bytes} bytes")
    return data


def _write(root: Path, path: str, data: bytes) -> DocumentFile:
    """Writes a draft and renames it, so that nobody reads half a file."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft, now = f"{DRAFT}{secrets.token_hex(8)}", time.time_ns()
    with _parent(root, path, make=True) as folder:
        created = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
        try:
            with os.fdopen(created, "wb") as file:
                file.write(data)
                file.flush()
                # By the kernel's clock two files within one tick would have the same time.
                os.utime(created, ns=(now, now))
                os.fsync(created)
                status = os.fstat(created)
            os.rename(draft, _name(path), src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(draft, dir_fd=folder)
            raise
        os.fsync(folder)
    return DocumentFile(path, status.st_size, status.st_mtime_ns)


def _unlink(root: Path, path: str) -> bool:
    try:
        with _parent(root, path) as folder:
            os.unlink(_name(path), dir_fd=folder)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    with suppress(OSError):  # the first of them is not empty
        while "/" in path:
            path = path.rpartition("/")[0]
            with _parent(root, path) as folder:
                os.rmdir(_name(path), dir_fd=folder)
    return True


@contextmanager
def _translated(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        refusal = Conflict if error.errno in IN_THE_WAY else Unavailable
        raise refusal(f"`{path}` cannot be written: {_reason(error)}") from None


def _open(root: Path, path: str) -> BinaryIO:
    with _parent(root, path) as folder:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        return os.fdopen(os.open(_name(path), flags, dir_fd=folder), "rb")


@contextmanager
def _parent(root: Path, path: str, *, make: bool = False) -> Iterator[int]:
    """Opens the folder of a path component by component, none through a symbolic link.

    So a file that is replaced by a link after the scan does not lead out of the tree.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    descriptor = os.open(root, flags)
    try:
        for part in path.split("/")[:-1]:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=descriptor)
            opened = os.open(part, flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = opened
        yield descriptor
    finally:
        os.close(descriptor)


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()


def _shown(path: str) -> str:
    return path.encode("utf-8", "replace").decode().replace("\0", "?")
