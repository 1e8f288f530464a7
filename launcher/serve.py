"""The Serve graph as a child process."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.process import ChildProcess, Command

# The graph shuts down within 60 s: replicas drain first.
_STOP_TIMEOUT_S = 75.0


def serve_command(config_file: Path) -> list[str]:
    """Returns the command that runs the graph until SIGTERM; SIGHUP deploys the file again."""
    return [sys.executable, "-m", "deployments.graph.serve_graph", str(config_file)]


class ServeGraph:
    """The Serve graph; each `start` is a new process.

    Args:
        argv: the command, which blocks until SIGTERM.
        env: its whole environment.
        cwd: its working directory.
        log_file: takes its output.
    """

    name = "Serve"

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], *, cwd: Path, log_file: Path
    ) -> None:
        # A reload before the process has a handler would end it; it reads its configuration anyway.
        self._command = Command(argv, env, cwd, ignored_signals=(signal.SIGHUP,))
        self._log_file = log_file
        self._child: ChildProcess | None = None

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    async def start(self) -> None:
        """Starts the process; the health route shows whether the graph answers.

        Raises:
            ServiceFailed: the command cannot be executed.
        """
        self._child = ChildProcess(
            self.name,
            self._command,
            log_file=self._log_file,
            stop_signal=signal.SIGTERM,
            stop_timeout_s=_STOP_TIMEOUT_S,
        )
        await self._child.start()

    async def wait(self) -> int:
        return await self._child.wait() if self._child is not None else 0

    async def stop(self, stop_now: asyncio.Event | None = None) -> None:
        """Asks the graph to shut down; kills it after 75 s, or when `stop_now` is set."""
        if self._child is not None:
            await self._child.stop(stop_now)
