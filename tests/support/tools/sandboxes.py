"""Python executors for tests, and the proof that nothing of a call is left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil

from contracts.tools.api import IsolationTier, Outcome
from executors.python.executor import PythonLimits, PythonToolExecutor
from executors.python.packages import Packages
from executors.python.tiers import HostTiers
from tests.support.events import RecordedEvents
from tests.support.tools.executions import Secrets, definition, execution

SECRET = "tok-9f8e7d6c5b4a"
MARK = "executors.python.child.main"
LIMITS = PythonLimits(memory_mb=256, disk_mb=2)


def python_executor(
    tiers: tuple[IsolationTier, ...],
    events: RecordedEvents,
    limits: PythonLimits = LIMITS,
    **options: Any,
) -> PythonToolExecutor:
    """The package `hostile_toolbox` must be importable: prepend `tests/support/tools`."""
    packages, secrets = Packages(["toolbox", "hostile_toolbox"]), Secrets(api_key=SECRET)
    return PythonToolExecutor(
        packages, HostTiers(tiers), secrets, events, limits=limits, floor="process", **options
    )


def children(*owners: int) -> set[int]:
    """Returns sandbox processes of this process or of `owners`, and those whose owner is gone."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if _is_sandbox(process) and _owner(process) in {0, 1, os.getpid(), *owners}:
                found.add(process.pid)
    return found


def _is_sandbox(process: psutil.Process) -> bool:
    return any(MARK in word for word in process.cmdline())


def _owner(process: psutil.Process) -> int:
    """Returns the first ancestor outside the sandbox; other tests have sandboxes, too."""
    parent = process.parent()
    if parent is None:
        return 0
    return _owner(parent) if _is_sandbox(parent) else parent.pid


def kernel_objects() -> str:
    return "".join(Path(f"/proc/sysvipc/{kind}").read_text() for kind in ("msg", "sem"))


def scratch_folders() -> set[str]:
    """The folders of calls of this process, or of processes that are gone."""
    found = Path(tempfile.gettempdir()).glob("daarion-tool-*")
    return {
        str(path)
        for path in found
        if (owner := path.name.split("-")[2]) == str(os.getpid())
        or not Path(f"/proc/{owner}").exists()
    }


@contextlib.asynccontextmanager
async def nothing_survives(events: RecordedEvents, timeout_s: float = 30) -> AsyncIterator[None]:
    """Checks that the block leaves no process, folder, descriptor, task, kernel object or secret.

    Processes end within `timeout_s`.
    """
    gc.collect()
    processes, folders, tasks, objects = (
        children(),
        scratch_folders(),
        len(asyncio.all_tasks()),
        kernel_objects(),
    )
    descriptors, started = psutil.Process().num_fds(), set(psutil.Process().children())
    yield
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while children() - processes:
                await asyncio.sleep(0.05)
    assert children() <= processes
    assert set(psutil.Process().children()) <= started
    assert scratch_folders() <= folders
    assert psutil.Process().num_fds() <= descriptors
    assert len(asyncio.all_tasks()) <= tasks
    assert kernel_objects() == objects
    assert SECRET not in repr(events.events)


async def attack(
    tier: IsolationTier,
    events: RecordedEvents,
    function: str,
    args: dict[str, Any] | None = None,
    *,
    module: str = "",
    **changes: Any,
) -> Outcome:
    """Runs one hostile function; checks that it ends in time and that nothing survives."""
    tool = definition(
        f"hostile_toolbox{module}:{function}",
        "python",
        **{"timeout_s": 30, "effect": "write", **changes},
    )
    executor = python_executor((tier,), events)
    started = time.monotonic()
    async with nothing_survives(events):
        outcome = await executor.execute(execution(tool, args))
        assert time.monotonic() - started < tool.timeout_s + 15
    assert outcome.tier == tier
    assert not outcome.effect_possible  # without network nothing leaves the process
    assert outcome.ok or outcome.error
    assert SECRET not in repr(outcome)
    return outcome
