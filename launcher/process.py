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
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import ServiceFailed

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Account:
    """The system account a child runs as."""

    uid: int
    gid: int


@dataclass(frozen=True)
class Command:
    """What to run and how.

    `account` None means the launcher's own. The child ignores `ignored_signals` until it installs
    handlers of its own.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    account: Account | None = None
    ignored_signals: Sequence[signal.Signals] = ()


def become_subreaper() -> None:
    """Makes this process the parent of orphaned descendants, so that it finds them. Linux only."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class ChildProcess:
    """One long-running child.

    Args:
        name: what the operator reads, e.g. `PostgreSQL`.
        command: what to run.
        log_file: takes its output, appended.
        stop_signal: asks it to end; the kernel sends it, too, when the launcher dies.
        stop_timeout_s: the wait in `stop` before `kill_signal`.
        kill_signal: ends it at once.
    """

    def __init__(
        self,
        name: str,
        command: Command,
        *,
        log_file: Path,
        stop_signal: signal.Signals = signal.SIGTERM,
        stop_timeout_s: float = 10.0,
        kill_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        self.name = name
        self.log_file = log_file
        self._command = command
        self._stop_signal = stop_signal
        self._stop_timeout_s = stop_timeout_s
        self._kill_signal = kill_signal
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The process id, None while it does not run."""
        return self._process.pid if self._process is not None and self.running else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Starts the child.

        Raises:
            ServiceFailed: the program cannot be executed.
        """
        log = await asyncio.to_thread(_open_log, self.log_file)
        try:
            self._process = await _spawn(
                self._command,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                death_signal=self._stop_signal,
            )
        except OSError as error:
            raise ServiceFailed(f"{self.name} cannot be started: {error.strerror}") from error
        finally:
            os.close(log)

    async def wait(self) -> int:
        """Returns the exit status (negative: a signal) when it has ended; 0 if it never ran."""
        return await self._process.wait() if self._process is not None else 0

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal; does nothing if the process has just ended."""
        if self._process is not None and self.running:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def stop(self, stop_now: asyncio.Event | None = None) -> None:
        """Asks it to end; kills it after `stop_timeout_s`, or when `stop_now` is set."""
        self.signal(self._stop_signal)
        if await self._ended_within(self._stop_timeout_s, stop_now):
            return
        self.signal(self._kill_signal)
        if not await self._ended_within(5.0, None):
            self.signal(signal.SIGKILL)
            await self.wait()

    async def _ended_within(self, seconds: float, stop_now: asyncio.Event | None) -> bool:
        waits = [asyncio.ensure_future(self.wait())]
        if stop_now is not None:
            waits.append(asyncio.ensure_future(_when(stop_now)))
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return not self.running


async def run_tool(command: Command, *, timeout_s: float) -> tuple[int, str]:
    """Runs a short command; returns its exit status, and stdout and stderr together.

    Raises:
        ServiceFailed: the command cannot be executed, or took longer than `timeout_s`.
    """
    name = Path(command.argv[0]).name
    try:
        process = await _spawn(
            command,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            death_signal=signal.SIGTERM,
        )
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
    command: Command, *, stdout: int, stderr: int, death_signal: signal.Signals
) -> asyncio.subprocess.Process:
    account = command.account
    return await asyncio.create_subprocess_exec(
        *command.argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env=dict(command.env),
        cwd=command.cwd,
        start_new_session=True,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
        preexec_fn=_before_exec(death_signal, command.ignored_signals),
    )


def _before_exec(
    death_signal: signal.Signals, ignored_signals: Sequence[signal.Signals]
) -> Callable[[], None]:
    """Returns what the child runs between fork and exec.

    It runs after the change of account, which would clear the death signal.
    """
    parent = os.getpid()

    def prepare() -> None:
        for number in ignored_signals:
            signal.signal(number, signal.SIG_IGN)
        if _LIBC is None:
            return
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent:  # the launcher died before the call above
            os._exit(1)

    return prepare


def _open_log(path: Path) -> int:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


async def _when(event: asyncio.Event) -> int:
    await event.wait()
    return 0
