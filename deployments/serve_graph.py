"""`python -m deployments.serve_graph <config.yaml>`: one Ray node and the Serve graph of a file, until SIGTERM.

SIGHUP deploys the file anew: what can change in place does, through each deployment's `user_config`. The process exits
with 1 and one line on stderr when the graph cannot be deployed. Ray's processes end with this one, also when it is killed.
"""

from __future__ import annotations

import importlib
import logging
import queue
import re
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import yaml

from configs.environment import Environment, export, read_environment
from contracts.errors import ConfigurationError, DaarionError
from deployments.serve_defaults import node_options, ray_variables

if TYPE_CHECKING:
    from ray.serve.schema import ServeDeploySchema

POLL_S = 1.0
SERVE_STOP_S = 20.0
RAY_STOP_S = 7.0
LEFTOVER_S = 2.0

log = logging.getLogger("daarion.serve_graph")


class DeployFailed(Exception):
    """An application could not be deployed; the message is one line."""


def main(arguments: list[str]) -> int:
    """Runs the graph. Returns the process's exit status."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    if len(arguments) != 1:
        log.error("usage: python -m deployments.serve_graph <config.yaml>")
        return 2
    try:
        environment = read_environment()
        file = Path(arguments[0]).absolute()
        export(ray_variables(environment))
        return Graph(file, environment).run()
    except (DaarionError, DeployFailed) as error:
        log.error("%s", error)  # noqa: TRY400  # one line, no traceback
        return 1


class Graph:
    """The graph of one configuration file on a Ray node of its own."""

    def __init__(self, file: Path, environment: Environment) -> None:
        self._file = file
        self._environment = environment
        self._signals: queue.SimpleQueue[int] = queue.SimpleQueue()

    def run(self) -> int:
        """Starts, deploys and blocks until SIGTERM or SIGINT."""
        config = deploy_config(self._file, self._environment)
        try:
            self._start(config)
            self._listen()
            self._deploy(config)
            if self._came_up():
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
        log.info("Serve started in %.1f s", time.monotonic() - started)

    def _listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda received, _frame: self._signals.put(received))

    def _deploy(self, config: ServeDeploySchema) -> None:
        from ray.serve.context import _get_global_client  # noqa: PLC0415  # what `serve run` does with a file

        client = _get_global_client()
        client.deploy_apps(config)

    def _came_up(self) -> bool:
        """Waits until every application runs; False when a signal asks to stop meanwhile.

        Raises:
            DeployFailed: an application cannot be deployed.
        """
        started = time.monotonic()
        while not_running():
            with suppress(queue.Empty):
                if self._signals.get(timeout=POLL_S) != signal.SIGHUP:
                    return False
        log.info("all applications run after %.1f s", time.monotonic() - started)
        return True

    def _block(self) -> None:
        while self._signals.get() == signal.SIGHUP:
            self._reload()

    def _reload(self) -> None:
        """Deploys the file as it is now; a mistake in it leaves the running graph as it was."""
        try:
            self._deploy(with_live_config(deploy_config(self._file, self._environment)))
        except DaarionError as error:
            log.error("not reloaded: %s", error)  # noqa: TRY400  # one line, no traceback
        else:
            log.info("reloaded")


def deploy_config(file: Path, environment: Environment) -> ServeDeploySchema:
    """Returns Serve's configuration from `file`, listening where the environment says.

    Raises:
        ConfigurationError: the file is missing, no YAML, or no Serve configuration.
    """
    from pydantic import ValidationError  # noqa: PLC0415
    from ray.serve.schema import ServeDeploySchema  # noqa: PLC0415

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        config = ServeDeploySchema.model_validate(content)
    except (OSError, UnicodeDecodeError):
        raise ConfigurationError(f"{file.name}: cannot be read") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{file.name}: not valid YAML: {str(error).splitlines()[0]}") from None
    except ValidationError as error:
        mistake = error.errors(include_url=False, include_input=False)[0]
        raise ConfigurationError(f"{file.name}: {'.'.join(map(str, mistake['loc']))}: {mistake['msg']}") from None
    config.http_options.host = environment.host
    config.http_options.port = environment.port
    return config


def with_live_config(config: ServeDeploySchema) -> ServeDeploySchema:
    """Returns `config` with the `user_config` that each application's module computes from the files as they are now.

    An application takes part by a function `live_config(args) -> {deployment: user_config}` beside its builder.

    Raises:
        ConfigurationError: one of the files is wrong.
    """
    from ray.serve.schema import DeploymentSchema  # noqa: PLC0415

    for application in config.applications:
        module = importlib.import_module(application.import_path.partition(":")[0])
        live_config = getattr(module, "live_config", None)
        if live_config is None:
            continue
        known = {deployment.name: deployment for deployment in application.deployments}
        for name, values in live_config(application.args).items():
            if name not in known:
                known[name] = DeploymentSchema(name=name)
                application.deployments.append(known[name])
            known[name].user_config = values
    return config


def not_running() -> list[str]:
    """Returns the applications that do not run yet.

    Raises:
        DeployFailed: one never will.
    """
    from ray.serve.context import _get_global_client  # noqa: PLC0415  # serve.status() costs ten times the CPU

    pending = []
    for application in _get_global_client().list_serve_statuses():
        status, name = application.app_status.status, application.name
        if status == "DEPLOY_FAILED":
            failed = [f"{part.name}: {reason(part.message)}" for part in application.deployment_statuses if part.status == "DEPLOY_FAILED"]
            raise DeployFailed(f"application `{name}` cannot be deployed: {'; '.join(failed) or reason(application.app_status.message)}")
        if status != "RUNNING":
            pending.append(name)
    return pending


def reason(message: str) -> str:
    """Returns the one line of Serve's message that says why: the last of a traceback, without the class of our own errors."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if taken := re.search(r"cannot bind socket \(([^)]+)\) for \[([^]]+)\]", message):
        return f"{taken[2]}: {taken[1]}"
    last = lines[-1] if lines else "no reason was given"
    prefix, separator, text = last.partition(": ")
    return text if separator and prefix.startswith("contracts.errors.") else last


def stop() -> None:
    """Drains and stops Serve, then Ray's processes, in at most 30 s.

    Further signals change nothing: a stop that is cut short would leave HAProxy behind.
    """
    import ray  # noqa: PLC0415
    from ray import serve  # noqa: PLC0415

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    started = time.monotonic()
    _bounded(serve.shutdown, SERVE_STOP_S)
    descendants = psutil.Process().children(recursive=True)
    _bounded(ray.shutdown, RAY_STOP_S)
    # Ray's agents notice only after a minute that their node is gone.
    for process in psutil.wait_procs(descendants, timeout=LEFTOVER_S)[1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    log.info("stopped in %.1f s", time.monotonic() - started)


def _bounded(action: Any, seconds: float) -> None:
    """Waits for a blocking call no longer than `seconds`; the process ends soon after and takes Ray with it."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(seconds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
