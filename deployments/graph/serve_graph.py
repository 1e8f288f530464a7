"""`python -m deployments.graph.serve_graph <config.yaml>`: a Ray node with the graph of a file.

It runs until SIGTERM. SIGHUP deploys the file anew: live values change in place, through each
deployment's `user_config`; a mistake leaves the running graph unchanged. When the graph cannot be
deployed, one line on stderr says why; the exit status is 2 when the configuration is to blame, so
that a restart cannot help, else 1. Ray's processes end with this one, also when it is killed.
"""

from __future__ import annotations

import logging
import queue
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import psutil

from configs.environment import Environment, export, read_environment
from contracts.errors import ConfigurationError, DaarionError, Unavailable
from deployments.engines.chat_models import PREFIX
from deployments.graph.config import deploy_config, with_live_config
from deployments.graph.node_fit import fit
from deployments.graph.ray_patches import serve_client
from deployments.graph.serve_defaults import node_options, ray_variables

if TYPE_CHECKING:
    from ray.serve.schema import ServeDeploySchema

POLL_S = 1.0
SERVE_STOP_S = 20.0
RAY_STOP_S = 7.0
LEFTOVER_S = 2.0
SETTLE_S = 60.0
FAILED, REFUSED = 1, 2
FAILED_STATUS = "DEPLOY_FAILED"
_CONFIGURATION_ERROR = f"{ConfigurationError.__module__}.{ConfigurationError.__qualname__}: "

log = logging.getLogger("daarion.serve_graph")


class DeployFailed(Unavailable):
    """The ingress or an application cannot be deployed; the message is one line."""


def main(arguments: list[str]) -> int:
    """Runs the graph. Returns the process's exit status."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s: %(message)s"
    )
    if len(arguments) != 1:
        log.error("usage: python -m deployments.graph.serve_graph <config.yaml>")
        return 2
    signals = Signals()
    try:
        environment = read_environment()
        file = Path(arguments[0]).absolute()
        export(ray_variables(environment))
        return Graph(file, environment, signals).run()
    except DaarionError as error:
        log.error("%s", error)  # noqa: TRY400  # one line, no traceback
        return REFUSED if isinstance(error, ConfigurationError) else FAILED


class Signals:
    """Signals to this process: SIGHUP to reload, SIGTERM or SIGINT to stop. None is lost."""

    def __init__(self) -> None:
        self.stop_asked = False
        self.reload_asked = False
        self._arrived: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.listen()

    def listen(self) -> None:
        """Installs the handlers; to be repeated after a library has installed its own."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._note)

    def wait(self, seconds: float | None) -> None:
        """Returns after `seconds` (None: no bound), or with a new signal."""
        with suppress(queue.Empty):
            self._arrived.get(timeout=seconds)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self.reload_asked = True
        else:
            self.stop_asked = True
        self._arrived.put(number)


class Graph:
    """The graph of one configuration file on a Ray node of its own."""

    def __init__(self, file: Path, environment: Environment, signals: Signals) -> None:
        self._file = file
        self._environment = environment
        self._signals = signals

    def run(self) -> int:
        """Starts, deploys and blocks until SIGTERM or SIGINT.

        Raises:
            ConfigurationError: a file is wrong; nothing was started.
            DeployFailed: Serve or an application does not come up.
        """
        config = deploy_config(self._file, self._environment)
        with_live_config(config.model_copy(deep=True))  # nothing starts unless all files are right
        if self._signals.stop_asked:
            return 0
        try:
            self._start(config)
            if not self._signals.stop_asked:
                self._deploy(config)
                self._come_up()
                self._block()
        finally:
            stop()
        return 0

    def _start(self, config: ServeDeploySchema) -> None:
        import ray  # noqa: PLC0415  # reads the exported variables when it is imported
        from ray import serve  # noqa: PLC0415

        started = time.monotonic()
        ray.init(**node_options(self._environment))
        try:
            serve.start(
                proxy_location=config.proxy_location,
                http_options=config.http_options.model_dump(),
                logging_config=config.logging_config,
            )
        except Exception as error:
            raise DeployFailed(f"the ingress cannot start: {reason(str(error))}") from error
        self._signals.listen()
        log.info("Serve started in %.1f s", time.monotonic() - started)

    def _deploy(self, config: ServeDeploySchema) -> None:
        import ray  # noqa: PLC0415

        fit(config, ray.cluster_resources())
        serve_client().deploy_apps(config)

    def _come_up(self) -> None:
        """Waits until every application runs or a signal asks to stop; a reload waits until then.

        Raises:
            ConfigurationError, DeployFailed: an application cannot be deployed.
        """
        started = time.monotonic()
        self._until_running(lambda: self._signals.stop_asked)
        if not self._signals.stop_asked:
            log.info("all applications run after %.1f s", time.monotonic() - started)
            for problem in failed_models().values():
                log.error("%s", problem)

    def _block(self) -> None:
        while not self._signals.stop_asked:
            if self._signals.reload_asked:
                self._signals.reload_asked = False  # a later SIGHUP asks for another reload
                self._reload()
            else:
                self._signals.wait(None)

    def _reload(self) -> None:
        """Deploys the file as it is now; a mistake leaves the running graph unchanged.

        Waits for the applications at most `SETTLE_S`, or until the next signal.
        """
        from ray import serve  # noqa: PLC0415  # reads variables

        try:
            config = with_live_config(deploy_config(self._file, self._environment))
            for name in failed_models():
                serve.delete(name)  # an unchanged application would not be tried a second time
            self._deploy(config)
            until = time.monotonic() + SETTLE_S
            pending = self._until_running(
                lambda: (
                    self._signals.stop_asked
                    or self._signals.reload_asked
                    or time.monotonic() > until
                )
            )
        except DaarionError as error:
            log.error("not reloaded: %s", error)  # noqa: TRY400  # one line, no traceback
        except Exception as error:  # noqa: BLE001  # a reload must not end the graph
            kind = type(error).__name__
            log.error("not reloaded: %s: %s", kind, reason(str(error)))  # noqa: TRY400
        else:
            late = [*pending, *map(str, failed_models().values())]
            log.info("reloaded%s", f", but not running yet: {', '.join(late)}" if late else "")

    def _until_running(self, is_over: Callable[[], bool]) -> list[str]:
        """Waits until every application runs, or `is_over`; returns those that do not run yet."""
        while (pending := not_running()) and not is_over():
            self._signals.wait(POLL_S)
        return pending


def failed_models() -> dict[str, DaarionError]:
    """Returns why models of `local_llms` cannot start, by application: the graph runs without."""
    return {
        application.name: _failure(application)
        for application in serve_client().list_serve_statuses()
        if application.name.startswith(PREFIX) and application.app_status.status == FAILED_STATUS
    }


def not_running() -> list[str]:
    """Returns the applications that do not run yet, without models that cannot start.

    Raises:
        ConfigurationError: one cannot be deployed, because of its configuration.
        DeployFailed: one cannot be deployed for another reason.
    """
    pending = []
    for application in serve_client().list_serve_statuses():
        status, name = application.app_status.status, application.name
        if status == FAILED_STATUS and not name.startswith(PREFIX):
            raise _failure(application)
        if status not in {"RUNNING", FAILED_STATUS}:
            pending.append(name)
    return pending


def _failure(application: Any) -> DaarionError:
    messages = {
        part.name: part.message
        for part in application.deployment_statuses
        if part.status == FAILED_STATUS
    }
    reasons = "; ".join(
        f"{part}: {reason(message)}" for part, message in messages.items()
    ) or reason(application.app_status.message)
    refused = any(
        _CONFIGURATION_ERROR in message
        for message in (*messages.values(), application.app_status.message)
    )
    kind = ConfigurationError if refused else DeployFailed
    return kind(f"application `{application.name}` cannot be deployed: {reasons}")


def reason(message: str) -> str:
    """Returns the reason in Serve's message: a traceback's last line, without our errors' class."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if taken := re.search(r"cannot bind socket \(([^)]+)\) for \[([^]]+)\]", message):
        return f"{taken[2]}: {taken[1]}"
    last = lines[-1] if lines else "no reason was given"
    prefix, separator, text = last.partition(": ")
    return text if separator and prefix.startswith("contracts.errors.") else last


def stop() -> None:
    """Drains and stops Serve, then Ray's processes, in at most 30 s.

    Further signals are ignored: a stop that is cut short would leave HAProxy behind. Before Ray
    runs there is nothing to stop, and a call to Serve would start another Ray.
    """
    import ray  # noqa: PLC0415
    from ray import serve  # noqa: PLC0415

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    started = time.monotonic()
    semaphores = {
        path
        for process in psutil.Process().children(recursive=True)
        for path in _semaphores(process.pid)
    }
    if ray.is_initialized():
        _bounded(serve.shutdown, SERVE_STOP_S)
    descendants = psutil.Process().children(recursive=True)
    _bounded(ray.shutdown, RAY_STOP_S)
    # Ray's agents need a minute to notice that their node is gone.
    for process in psutil.wait_procs(descendants, timeout=LEFTOVER_S)[1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    for path in semaphores:
        path.unlink(missing_ok=True)
    log.info("stopped in %.1f s", time.monotonic() - started)


def _semaphores(pid: int) -> set[Path]:
    """Returns the named semaphores that a process has open: a killed engine does not remove them.

    They are found by inode, because the C library maps each under a temporary name.
    """
    with suppress(OSError):
        maps = Path(f"/proc/{pid}/maps").read_text()
        inodes = {int(inode) for inode in re.findall(r" (\d+) +/dev/shm/sem\.", maps)}
        files = Path("/dev/shm").glob("sem.mp-*")  # noqa: S108
        return {path for path in files if path.stat().st_ino in inodes} if inodes else set()
    return set()


def _bounded(action: Any, seconds: float) -> None:
    """Waits at most `seconds` for a blocking call; the end of this process ends the call, too."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(seconds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
