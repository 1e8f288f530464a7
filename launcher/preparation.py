"""Everything between the command and the first child: environment, data directory, leftovers, checks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from configs.environment import Environment
from launcher import instance, logs, preflight, ray_logs, strays
from launcher.datadir import DataDir, DataDirLock
from launcher.settings import check_settings

_LOGS = ("postgres", "nats", "serve")
# What a killed launcher left has been asked to end by the kernel already.
_LEFTOVER_GRACE_S = 5.0


async def own_data_dir(data_dir: DataDir, say: Callable[[str], None]) -> DataDirLock:
    """Makes the data directory usable and takes its lock; ends what a killed launcher left behind.

    Raises:
        StartRefused: it cannot be written, is full, or belongs to a running launcher.
    """
    preflight.check_disk(
        preflight.free_disk(data_dir.root), data_dir.root
    )  # first: a full disk fails everything else in odd ways
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
    """What the graph needs beside the stores.

    Raises:
        ConfigurationError: a port is taken, a package or memory is missing, a configuration file is wrong.
    """
    preflight.check_port(environment.host, environment.port)
    preflight.check_packages()
    preflight.check_libraries()
    preflight.check_memory(preflight.available_memory(), memory_needed)
    await asyncio.to_thread(preflight.check_files, config_files)
    await asyncio.to_thread(check_settings, environment)


async def _clear_leftover(data_dir: DataDir, say: Callable[[str], None]) -> None:
    noted = instance.leftover(data_dir.run / "instance.json")
    if noted is None:
        return
    identity, directory = noted
    processes = await asyncio.to_thread(strays.marked, identity, directory)
    if processes:
        say(f"an earlier run was killed: ending the {len(processes)} processes it left")
        await asyncio.to_thread(strays.end, processes, _LEFTOVER_GRACE_S)
    await asyncio.to_thread(ray_logs.keep, data_dir.logs, directory)
    await asyncio.to_thread(instance.remove_directory, directory)
