"""Reads a tree of Markdown and text files: finds files, refuses what leads out of the tree, cuts along headings."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from contracts.memory.api import RefusedFile
from contracts.values import storable

SUFFIXES = frozenset({".md", ".markdown", ".txt", ".rst"})
MAX_FILES = 100_000
MAX_REFUSED = 1_000

_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*")
_FENCE = re.compile(r" {0,3}(```+|~~~+)")


@dataclass(frozen=True, slots=True)
class KbFile:
    """A readable file. `path` is relative to its tree, with `/`."""

    path: str
    size: int
    modified_ns: int


@dataclass(frozen=True, slots=True)
class Section:
    """Text below one heading. `heading` is the path of headings, `A > B`; `line` is the text's first line, from 1."""

    heading: str
    line: int
    text: str


class UnreadableFile(ValueError):
    """A file that cannot be indexed; the message is the reason, without a path."""


def microdao_folders(root: Path) -> dict[str, list[Path]]:
    """Returns the folders of each microDAO that has one: named by its id, plain or percent-encoded. Blocking.

    Links and names that are no text are left out.
    """
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError:
        return {}
    found: dict[str, list[Path]] = {}
    for entry in entries:
        microdao_id = unquote(entry.name)
        if entry.is_dir(follow_symlinks=False) and _is_text(entry.name) and _is_text(microdao_id):
            found.setdefault(microdao_id, []).append(Path(entry.path))
    return found


def scan(root: Path, max_bytes: int) -> tuple[list[KbFile], list[RefusedFile]]:
    """Returns the files of the tree and those refused, both in order of their path. Blocking. No tree, no files."""
    files: list[KbFile] = []
    refused: list[RefusedFile] = []
    if root.is_symlink():
        return [], [RefusedFile(path=".", reason="the folder itself is a symbolic link")]
    for entry in _walk(root):
        path = Path(entry.path).relative_to(root).as_posix()
        reason = _refusal(entry, max_bytes)
        if reason is None and len(files) < MAX_FILES:
            status = entry.stat(follow_symlinks=False)
            files.append(KbFile(path, status.st_size, status.st_mtime_ns))
        elif reason != "" and len(refused) < MAX_REFUSED:
            refused.append(RefusedFile(path=_shown(path), reason=reason or "too many files"))
    return files, refused


def read(root: Path, file: KbFile, max_bytes: int) -> tuple[str, bytes]:
    """Returns text and SHA-256 of a file. Blocking.

    No component of the path is followed through a symbolic link, so that a file swapped for a link after the scan does
    not lead out of the tree.

    Raises:
        UnreadableFile: gone, a link, too large, or no UTF-8.
    """
    data = _read_bytes(root, file.path, max_bytes)
    try:
        text = data.decode("utf-8-sig")
        storable(text)
    except UnicodeDecodeError as error:
        raise UnreadableFile(f"not UTF-8 (byte {error.start})") from None
    except ValueError:
        raise UnreadableFile("holds NUL characters") from None
    return text, hashlib.sha256(data).digest()


def sections(text: str, *, markdown: bool) -> list[Section]:
    """Returns the sections of a document, each below its heading; a text without headings is one section."""
    found: list[Section] = []
    trail: list[tuple[int, str]] = []
    body: list[str] = []
    begin = 1
    for number, line, heading in _lines(text, markdown=markdown):
        if heading is None:
            body.append(line)
            continue
        _add(found, trail, begin, body)
        level, title = heading
        trail = [entry for entry in trail if entry[0] < level] + [(level, title)]
        body, begin = [], number + 1
    _add(found, trail, begin, body)
    return found


def _add(found: list[Section], trail: list[tuple[int, str]], begin: int, body: list[str]) -> None:
    text = "\n".join(body).strip()
    if text:
        blank = next(index for index, line in enumerate(body) if line.strip())
        found.append(Section(" > ".join(title for _, title in trail if title), begin + blank, text))


def _lines(text: str, *, markdown: bool) -> Iterator[tuple[int, str, tuple[int, str] | None]]:
    """Yields number, line and, where the line is a heading outside of a code fence, its level and title."""
    fence: str | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if not markdown:
            yield number, line, None
            continue
        mark = _FENCE.match(line)
        if mark is not None and (fence is None or mark[1].startswith(fence)):
            fence = None if fence is not None else mark[1][:3]
        match = _HEADING.fullmatch(line) if fence is None else None
        yield number, line, (len(match[1]), match[2].strip()) if match else None


def _walk(root: Path) -> Iterator[os.DirEntry[str]]:
    """Yields everything that is no directory, depth first, without following links."""
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
    """Returns why a file is refused, "" when it is simply not ours, None when it is taken."""
    if entry.is_symlink():
        return "a symbolic link"
    if Path(entry.name).suffix.lower() not in SUFFIXES:
        return ""
    if not _is_text(entry.name):
        return "its name is not UTF-8"
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError as error:
        return _reason(error)
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    return f"larger than {max_bytes} bytes" if status.st_size > max_bytes else None


def _read_bytes(root: Path, path: str, max_bytes: int) -> bytes:
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
    """Opens `name` inside an open directory and closes that one. On failure the caller still closes the directory."""
    opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | flags, dir_fd=descriptor)
    os.close(descriptor)
    return opened


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()


def _is_text(name: str) -> bool:
    try:
        storable(name)
    except ValueError:
        return False
    return True


def _shown(path: str) -> str:
    return path.encode("utf-8", "replace").decode().replace("\0", "?")
