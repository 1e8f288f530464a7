"""One child process: in a session of its own, and ended with the launcher.

The kernel sends a child its stop signal when the launcher dies (`PR_SET_PDEATHSIG`), so that even
`kill -9` of the launcher leaves no store behind. The session of its own keeps the terminal's Ctrl-C
away: the supervisor decides in which order children stop.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from launcher import logs
from launcher.datadir import open_private
from launcher.errors import ServiceFailed

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None, use_errno=True)
_POLL_S = 0.05
_KILL_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Command:
    """What to run and how.

    `account` (user id, group id) None means the launcher's own. The child ignores
    `ignored_signals` until it installs handlers of its own.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    account: tuple[int, int] | None = None
    ignored_signals: Sequence[signal.Signals] = ()


def become_subreaper() -> None:
    """Makes this process the parent of orphaned descendants, so that it can collect them."""
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class ChildProcess:
    """One long-running child; `start` after it has ended starts it again.

    A subclass says with `prepare` what to run, and with `until_ready` when it can be used.

    Args:
        name: what the operator reads, e.g. `PostgreSQL`.
        log_file: takes its output, appended.
        command: what to run, where no subclass says it.
    """

    stop_signal = signal.SIGTERM
    """Asks it to end; the kernel sends it, too, when the launcher dies."""
    stop_timeout_s = 10.0
    """The wait in `stop` before `kill_signal`."""
    kill_signal = signal.SIGKILL
    """Ends it at once."""

    def __init__(self, name: str, log_file: Path, command: Command | None = None) -> None:
        self.name = name
        self.log_file = log_file
        self._command = command
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The process id, None while it does not run."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def prepare(self) -> Command:
        """Returns what to run. Raises StartRefused or ServiceFailed."""
        assert self._command is not None
        return self._command

    async def until_ready(self) -> None:
        """Returns when the started child can be used. Raises StartRefused or ServiceFailed."""

    async def start(self) -> None:
        """Starts the child and waits until it is ready; stops it if that fails.

        Raises:
            StartRefused: the machine or what an earlier run left cannot run it.
            ServiceFailed: it cannot be executed, or does not become ready.
        """
        try:
            command = await self.prepare()
            with open(self.log_file, "ab", opener=open_private) as log:  # noqa: ASYNC230
                self._process = await _spawn(command, log, death_signal=self.stop_signal)
        except OSError as error:
            raise ServiceFailed(f"{self.name} cannot be started: {error.strerror}") from error
        try:
            await self.until_ready()
        except BaseException:
            await self.stop()
            raise

    async def poll(self, is_ready: Callable[[], Awaitable[bool]], timeout_s: float) -> None:
        """Waits for `is_ready`. Raises ServiceFailed when the child ends before or time is up."""
        deadline = time.monotonic() + timeout_s
        while not await is_ready():
            if self.pid is None or time.monotonic() > deadline:
                last = await asyncio.to_thread(logs.last_line, self.log_file)
                raise ServiceFailed(f"{self.name} did not start: {last}")
            await asyncio.sleep(_POLL_S)

    async def wait(self) -> int:
        """Returns the exit status (negative: a signal) when it has ended; 0 if it never ran."""
        return await self._process.wait() if self._process is not None else 0

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal; does nothing if the process does not run."""
        if self._process is not None and self.pid is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def stop(self) -> None:
        """Asks it to end; after `stop_timeout_s` sends `kill_signal`, 5 s later SIGKILL."""
        for number, timeout_s in (
            (self.stop_signal, self.stop_timeout_s),
            (self.kill_signal, _KILL_TIMEOUT_S),
            (signal.SIGKILL, None),
        ):
            self.signal(number)
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self.wait()
                return

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


async def run_tool(
    command: Command, *, timeout_s: float, stdin: int = asyncio.subprocess.DEVNULL
) -> tuple[int, str]:
    """Runs a short command; returns its exit status, and stdout and stderr together.

    Raises:
        ServiceFailed: the command cannot be executed, or took longer than `timeout_s`.
    """
    name = Path(command.argv[0]).name
    try:
        process = await _spawn(command, asyncio.subprocess.PIPE, stdin=stdin)
    except OSError as error:
        raise ServiceFailed(f"{name} cannot be started: {error.strerror}") from error
    try:
        output, _ = await asyncio.wait_for(process.communicate(), timeout_s)
    except TimeoutError as error:
        raise ServiceFailed(f"{name} did not finish within {timeout_s:.0f} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, output.decode(errors="replace")


async def _spawn(
    command: Command,
    output: int | IO[bytes],
    *,
    stdin: int = asyncio.subprocess.DEVNULL,
    death_signal: signal.Signals = signal.SIGTERM,
) -> asyncio.subprocess.Process:
    account, parent = command.account, os.getpid()

    def before_exec() -> None:
        # After the change of account, which would clear the death signal.
        for number in command.ignored_signals:
            signal.signal(number, signal.SIG_IGN)
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent:  # the launcher died before the call above
            os._exit(1)

    return await asyncio.create_subprocess_exec(
        *command.argv,
        stdin=stdin,
        stdout=output,
        stderr=asyncio.subprocess.STDOUT,
        env=dict(command.env),
        cwd=command.cwd,
        start_new_session=True,
        user=account[0] if account else None,
        group=account[1] if account else None,
        extra_groups=[] if account else None,
        preexec_fn=before_exec,
    )
