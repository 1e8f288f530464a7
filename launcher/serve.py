"""The Serve graph as a child process."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.process import ChildProcess, Command


def serve_command(config_file: Path) -> list[str]:
    """Returns the command that runs the graph until SIGTERM; SIGHUP deploys the file again."""
    return [sys.executable, "-m", "deployments.graph.serve_graph", str(config_file.absolute())]


class ServeGraph(ChildProcess):
    """The Serve graph; the health route shows whether it answers.

    Args:
        argv: the command, which blocks until SIGTERM.
        env: its whole environment.
        cwd: its working directory.
        log_file: takes its output.
    """

    stop_timeout_s = 75.0  # the graph shuts down within 60 s: replicas drain first

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], *, cwd: Path, log_file: Path
    ) -> None:
        # A reload before the process has a handler would end it; it reads its configuration anyway.
        command = Command(argv, env, cwd, ignored_signals=(signal.SIGHUP,))
        super().__init__("Serve", log_file, command)
