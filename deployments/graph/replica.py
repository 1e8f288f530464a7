"""Parts of every ingress replica: the interpreter's settings, credentials, the event log."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Iterable

from backends.telemetry.event_log import FileEventLog, Listener
from configs.environment import Environment, refuse_open_ingress
from deployments.graph.ray_patches import serve_host
from deployments.graph.resources import Resources
from interfaces.http.base.access import AccessControl

COLLECT_AFTER = 20_000
"""New objects before the garbage collector runs. With Python's 700 it ran on every other call and
found nothing, because reference counts free what a call allocates."""
SWITCH_AFTER_S = 0.0002
"""Longest time that another thread keeps the event loop waiting. With Python's 5 ms one call in a
hundred waited for the event log's thread."""


def tune_interpreter() -> None:
    """Sets garbage collection and thread switching for a process with one busy event loop."""
    gc.set_threshold(COLLECT_AFTER, 20, 20)
    sys.setswitchinterval(SWITCH_AFTER_S)


def open_event_log(
    environment: Environment,
    application: str,
    listeners: Iterable[Listener] = (),
    *,
    resources: Resources | None = None,
) -> FileEventLog:
    """Returns this process's event log, `<data dir>/logs/events/<application>-<pid>.jsonl`.

    `resources` close it; without them it lives as long as the process.
    """
    path = environment.data_dir / "logs" / "events" / f"{application}-{os.getpid()}.jsonl"
    log = FileEventLog(path, application, listeners)
    if resources is not None:
        resources.push_async_callback(asyncio.to_thread, log.close)
    return log


def access_control(environment: Environment) -> AccessControl:
    """Returns the check of this environment's secrets, before the replica listens.

    Serve knows the address: its own commands deploy the graph without `DAARION_HOST`.

    Raises:
        ConfigurationError: the replica listens on another address than loopback, and no secret is
            set, or a short one.
    """
    host = serve_host()
    if host is not None:
        refuse_open_ingress(host, environment, f"Serve's http_options.host {host}")
    return AccessControl(
        environment.internal_secret, environment.admin_secret, environment.allowed_hosts
    )
