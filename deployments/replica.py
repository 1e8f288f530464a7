"""What every ingress replica has: the environment, credentials, its event log."""

from __future__ import annotations

import os
from collections.abc import Iterable

from backends.event_log import FileEventLog, Listener
from configs.environment import Environment
from interfaces.http.access import AccessControl


def open_event_log(environment: Environment, application: str, listeners: Iterable[Listener] = ()) -> FileEventLog:
    """Returns this process's event log, `<data dir>/logs/events/<application>-<pid>.jsonl`."""
    path = environment.data_dir / "logs" / "events" / f"{application}-{os.getpid()}.jsonl"
    return FileEventLog(path, application, listeners)


def access_control(environment: Environment) -> AccessControl:
    """Returns the check of this environment's secrets."""
    return AccessControl(environment.internal_secret, environment.admin_secret)
