"""Files under `run/`: what the running launcher has started. A stop removes them."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass

from launcher.datadir import DataDir, write_private


@dataclass(frozen=True)
class Part:
    """One started part; `pid` is None for a store that runs elsewhere."""

    name: str
    pid: int | None
    address: str


def write_parts(data_dir: DataDir, parts: list[Part]) -> None:
    """Records the running parts, for `status` and `reload`."""
    content = {"launcher": os.getpid(), "parts": [asdict(part) for part in parts]}
    write_private(data_dir.run / "state.json", json.dumps(content, indent=1))


def read_parts(data_dir: DataDir) -> dict[str, Part]:
    """Returns the parts of the running launcher by name; ignores the file of a killed one."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        if data_dir.holder() is not None:
            content = json.loads((data_dir.run / "state.json").read_text())
            return {part["name"]: Part(**part) for part in content["parts"]}
    return {}


def clear(data_dir: DataDir) -> None:
    """Removes every file under `run/`."""
    for path in data_dir.run.iterdir():
        path.unlink()
