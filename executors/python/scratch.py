"""The scratch folder of one call, and the bytes stored in it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path

MAX_FILES = 1_000
TOO_MUCH = 1 << 62
_DELETED = " (deleted)"
_NAME = re.compile(r"daarion-tool-(\d+)-.+")


def make_scratch() -> str:
    """Returns the real path of a new folder with mode 0700. Raises OSError."""
    return os.path.realpath(tempfile.mkdtemp(prefix=f"daarion-tool-{os.getpid()}-"))


def stored(folder: str, pid: int) -> int:
    """Returns the bytes on disk of the files in a flat folder.

    Unlinked files that process `pid` holds open count. Returns TOO_MUCH for more than MAX_FILES
    files, and for an unlinked file that is only mapped, whose size cannot be read; a second scan
    confirms that, since the file may have been closed during the first. Raises PermissionError if
    this process may not inspect `pid`.
    """
    sizes, mapped = _scan(folder, pid)
    unmeasured = mapped - sizes.keys()
    if unmeasured:
        sizes, mapped = _scan(folder, pid)
        unmeasured &= mapped - sizes.keys()
    return TOO_MUCH if unmeasured or len(sizes) > MAX_FILES else sum(sizes.values())


def _scan(folder: str, pid: int) -> tuple[dict[int, int], set[int]]:
    """Returns sizes of named and open unlinked files by inode, and mapped unlinked inodes."""
    sizes: dict[int, int] = {}
    mapped: set[int] = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        with os.scandir(folder) as entries:
            for entry in entries:
                _measure(entry.path, sizes)
                if len(sizes) > MAX_FILES:
                    return sizes, mapped
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208
            if _scan_thread(f"/proc/{pid}/task/{thread}", folder, sizes, mapped):
                break  # threads share one memory and, by the filter, one descriptor table
    return sizes, mapped


def _scan_thread(thread: str, folder: str, sizes: dict[int, int], mapped: set[int]) -> bool:
    """Adds the unlinked files that a thread holds. Returns False if it ended meanwhile."""
    try:
        for descriptor in os.listdir(f"{thread}/fd"):  # noqa: PTH208
            _measure(f"{thread}/fd/{descriptor}", sizes, within=folder)
        with open(f"{thread}/maps", errors="replace") as areas:  # noqa: PTH123
            for area in areas:
                # Addresses, rights, offset, device, inode, path; there may be tens of thousands.
                if area.endswith(f"{_DELETED}\n"):
                    *_, inode, path = area.split(maxsplit=5)
                    if path.startswith(f"{folder}/"):
                        mapped.add(int(inode))
    except (FileNotFoundError, ProcessLookupError):
        return False
    except PermissionError:  # /proc entries of an ended thread belong to root
        if _has_memory(thread):
            raise
    return _has_memory(thread)


def _has_memory(thread: str) -> bool:
    """A thread that ends releases its memory first: while it has memory, /proc shows its files."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return not Path(f"{thread}/statm").read_text().startswith("0 ")
    return False


def _measure(path: str, sizes: dict[int, int], within: str | None = None) -> None:
    """Adds a file's size.

    With `within`, `path` is a descriptor in /proc, and counts if its file was unlinked from that
    folder.
    """
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        if within is not None:
            name = os.readlink(path)  # noqa: PTH115
            if not (name.startswith(f"{within}/") and name.endswith(_DELETED)):
                return
        found = os.stat(path, follow_symlinks=within is not None)  # noqa: PTH116
        sizes[found.st_ino] = found.st_blocks * 512


def remove_scratch(folder: str) -> None:
    """Removes a call's folder, whatever the tool did to it."""
    with contextlib.suppress(OSError):
        os.chmod(folder, 0o700)  # noqa: PTH101
    shutil.rmtree(folder, ignore_errors=True)


def sweep_scratch() -> None:
    """Removes the folders of processes that were killed."""
    for folder in Path(tempfile.gettempdir()).glob("daarion-tool-*"):
        match = _NAME.fullmatch(folder.name)
        with contextlib.suppress(OSError):
            if (
                match
                and not Path(f"/proc/{match[1]}").exists()
                and folder.lstat().st_uid == os.geteuid()
            ):
                remove_scratch(str(folder))
