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


def write_services(
    data_dir: DataDir, *, database_url: str, database_owner_url: str, nats_url: str | None
) -> None:
    """Records the stores' URLs for a graph beside the launcher (0600, replaced in one step)."""
    urls = {
        "database_url": database_url,
        "database_owner_url": database_owner_url,
        "nats_url": nats_url,
    }
    write_private(data_dir.services, json.dumps(urls, indent=1))


def write_parts(data_dir: DataDir, parts: list[Part]) -> None:
    """Records the running parts, for `status` and `reload`."""
    content = {"launcher": os.getpid(), "parts": [asdict(part) for part in parts]}
    write_private(data_dir.run / "state.json", json.dumps(content, indent=1))


def read_parts(data_dir: DataDir) -> list[Part]:
    """Returns the recorded parts; empty when nothing runs."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads((data_dir.run / "state.json").read_text())
        return [Part(**part) for part in content["parts"]]
    return []


def clear(data_dir: DataDir) -> None:
    """Removes every file under `run/`."""
    for path in data_dir.run.glob("*"):
        path.unlink(missing_ok=True)
    for path in data_dir.run.glob(".*"):
        path.unlink(missing_ok=True)
