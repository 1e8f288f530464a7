"""The folder that each call has for itself."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path

_NAME = re.compile(r"daarion-tool-(\d+)-.+")


def make_scratch() -> str:
    """Returns a new folder that only this user enters. Raises OSError."""
    return tempfile.mkdtemp(prefix=f"daarion-tool-{os.getpid()}-")


def remove_scratch(folder: str) -> None:
    """Removes a call's folder, whatever the tool did to it."""
    with contextlib.suppress(OSError):
        os.chmod(folder, 0o700)  # noqa: PTH101
    shutil.rmtree(folder, ignore_errors=True)


def sweep_scratch() -> None:
    """Removes what processes that were killed could not."""
    for folder in Path(tempfile.gettempdir()).glob("daarion-tool-*"):
        match = _NAME.fullmatch(folder.name)
        with contextlib.suppress(OSError):
            if match and not Path(f"/proc/{match[1]}").exists() and folder.lstat().st_uid == os.geteuid():
                remove_scratch(str(folder))
