"""What every ingress replica has: the environment, credentials, its event log."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterable
from typing import Any

from backends.telemetry.event_log import FileEventLog, Listener
from configs.environment import Environment, refuse_open_ingress
from interfaces.http.base.access import AccessControl

_SERVE_CONTEXT = "ray.serve.context"


COLLECT_AFTER = 20_000
"""New objects that may wait for the garbage collector. Python's 700 let it run for every other call, for nothing: what a call makes is
freed by reference counts."""
SWITCH_AFTER_S = 0.0002
"""How long a thread may keep the event loop waiting: with Python's 5 ms a slow call in a hundred waits for the log's thread."""


def tune_interpreter() -> None:
    """Makes this process's garbage collections rare (Serve has frozen what was there before the first request) and its threads give way."""
    gc.set_threshold(COLLECT_AFTER, 20, 20)
    sys.setswitchinterval(SWITCH_AFTER_S)


def open_event_log(
    environment: Environment, application: str, listeners: Iterable[Listener] = ()
) -> FileEventLog:
    """Returns this process's event log, `<data dir>/logs/events/<application>-<pid>.jsonl`."""
    path = environment.data_dir / "logs" / "events" / f"{application}-{os.getpid()}.jsonl"
    return FileEventLog(path, application, listeners)


def access_control(environment: Environment) -> AccessControl:
    """Returns the check of this environment's secrets. Every ingress replica makes one before it listens.

    Raises:
        ConfigurationError: Serve lets the replica listen on another address than loopback, and no secret is set, or a short
            one. Serve is asked, because its own commands deploy the graph without `DAARION_HOST`.
    """
    host = serve_host()
    if host is not None:
        refuse_open_ingress(host, environment, f"Serve's http_options.host {host}")
    return AccessControl(
        environment.internal_secret, environment.admin_secret, environment.allowed_hosts
    )


def serve_host() -> str | None:
    """Returns the address on which Serve's ingress listens, as Serve itself knows it; None outside a replica."""
    context: Any = sys.modules.get(_SERVE_CONTEXT)  # a plain process of a service does without Ray
    if context is None or context._get_internal_replica_context() is None:  # noqa: SLF001  # Serve has no public question for it
        return None
    host: str | None = context._get_global_client().http_config.host  # noqa: SLF001
    return host
