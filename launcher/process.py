"""One child process: started in a session of its own, stopped in order, never outliving the launcher.

Every child asks the kernel for its stop signal when the launcher dies (`PR_SET_PDEATHSIG`), so even `kill -9` of the
launcher leaves no store behind. A session of its own keeps the terminal's Ctrl-C away from it: the order of stopping is
the supervisor's decision.
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
    """What to run and how: `account` None means the launcher's own; `deaf_to` are signals it ignores until it takes them itself."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    account: Account | None = None
    deaf_to: Sequence[signal.Signals] = ()


def become_subreaper() -> None:
    """Makes orphaned descendants children of this process, so that it can find and end them. Linux only; else no effect."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class ChildProcess:
    """One long-running child.

    Args:
        name: what the operator reads, e.g. `PostgreSQL`.
        command: what to run.
        log_file: where its output goes (appended).
        stop_signal: asks it to end; also sent by the kernel when the launcher dies.
        stop_timeout_s: how long `stop` waits before `kill_signal`.
        kill_signal: ends it without asking.
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
        """The process id while it runs, else None."""
        return self._process.pid if self._process is not None and self.running else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Starts it.

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
        """Waits for its end and returns the exit status (negative: the signal that ended it); at once when it never ran."""
        return await self._process.wait() if self._process is not None else 0

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal; a process that has just ended is no error."""
        if self._process is not None and self.running:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def stop(self, hurry: asyncio.Event | None = None) -> None:
        """Asks it to end, waits at most `stop_timeout_s` (or until `hurry` is set), then ends it without asking."""
        self.signal(self._stop_signal)
        if await self._ended_within(self._stop_timeout_s, hurry):
            return
        self.signal(self._kill_signal)
        if not await self._ended_within(5.0, None):
            self.signal(signal.SIGKILL)
            await self.wait()

    async def _ended_within(self, seconds: float, hurry: asyncio.Event | None) -> bool:
        waits = [asyncio.ensure_future(self.wait())]
        if hurry is not None:
            waits.append(asyncio.ensure_future(_when(hurry)))
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return not self.running


async def run_tool(command: Command, *, timeout_s: float) -> tuple[int, str]:
    """Runs a short command to its end and returns its exit status and its output (stdout and stderr together).

    Raises:
        ServiceFailed: it cannot be executed, or took longer than `timeout_s`.
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
        preexec_fn=_before_exec(death_signal, command.deaf_to),
    )


def _before_exec(
    death_signal: signal.Signals, deaf_to: Sequence[signal.Signals]
) -> Callable[[], None]:
    """Returns what the child runs between fork and exec (after the change of account, which would clear the death signal)."""
    parent = os.getpid()

    def prepare() -> None:
        for number in deaf_to:
            signal.signal(number, signal.SIG_IGN)
        if _LIBC is None:
            return
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent:  # it died before the call above
            os._exit(1)

    return prepare


def _open_log(path: Path) -> int:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


async def _when(event: asyncio.Event) -> int:
    await event.wait()
    return 0
