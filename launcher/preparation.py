"""Prepares the first start of a child: data directory, leftovers, checks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from configs.environment import Environment
from launcher import instance, logs, preflight, ray_logs, strays
from launcher.datadir import DataDir, DataDirLock
from launcher.settings import check_settings

_LOGS = ("postgres", "nats", "serve")
# The kernel has already sent a stop signal to the children of a killed launcher.
_LEFTOVER_GRACE_S = 5.0


async def own_data_dir(data_dir: DataDir, say: Callable[[str], None]) -> DataDirLock:
    """Prepares the data directory, takes its lock, and ends what a killed launcher left.

    Raises:
        StartRefused: the directory cannot be written, is full, or belongs to a running launcher.
    """
    # First, since on a full disk everything else fails for obscure reasons.
    preflight.check_disk(preflight.free_disk(data_dir.root), data_dir.root)
    await asyncio.to_thread(data_dir.prepare)
    lock = DataDirLock(data_dir)
    lock.acquire()
    try:
        await _clear_leftover(data_dir, say)
        for name in _LOGS:
            await asyncio.to_thread(logs.begin, data_dir.log(name))
    except BaseException:
        lock.release()
        raise
    return lock


async def check_graph(
    environment: Environment, config_files: Sequence[Path], memory_needed: int
) -> None:
    """Checks what the graph needs beside the stores.

    Raises:
        ConfigurationError: a busy port, a missing package, too little memory, a wrong file.
    """
    preflight.check_port(environment.host, environment.port)
    preflight.check_packages()
    preflight.check_libraries()
    preflight.check_memory(preflight.available_memory(), memory_needed)
    await asyncio.to_thread(preflight.check_files, config_files)
    await asyncio.to_thread(check_settings, environment)


async def _clear_leftover(data_dir: DataDir, say: Callable[[str], None]) -> None:
    recorded = instance.leftover(data_dir.run / "instance.json")
    if recorded is None:
        return
    identity, directory = recorded
    processes = await asyncio.to_thread(strays.marked, identity, directory)
    if processes:
        say(f"an earlier run was killed: ending the {len(processes)} processes it left")
        await asyncio.to_thread(strays.end, processes, _LEFTOVER_GRACE_S)
    await asyncio.to_thread(ray_logs.keep, data_dir.logs, directory)
    await asyncio.to_thread(instance.remove_directory, directory)
