"""What every process of the graph is made of: open parts and their end, credentials, event log."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from backends.access.audit import PostgresAudit
from backends.access.jwks import read_keys
from backends.access.policy import PolicyServiceClient
from backends.access.principals import PostgresPrincipals
from backends.postgres.pool import Database, PoolLimits
from backends.telemetry.event_log import FileEventLog, Listener
from backends.telemetry.traces import Traces
from common.periodic import start_periodic
from common.tasks import end_tasks, spawn
from configs.access import PolicyServiceSettings
from configs.environment import Environment, refuse_open_ingress
from configs.proxies import no_proxy
from configs.stores import find_stores
from contracts.access.settings import AuditSettings
from contracts.events import EventLog, failure_event
from deployments.graph.ray_patches import serve_host
from interfaces.http.base.access import AccessControl
from services.access.audit import AuditTrail
from services.access.authentication import Authentication
from services.access.directory import Directory
from services.access.tokens import TICK_S, Tokens

COLLECT_AFTER = 20_000
"""New objects before the garbage collector runs. With Python's 700 it ran on every other call and
found nothing, because reference counts free what a call allocates."""
SWITCH_AFTER_S = 0.0002
"""Longest time that another thread keeps the event loop waiting. With Python's 5 ms one call in a
hundred waited for the event log's thread."""


class Closable(Protocol):
    async def close(self) -> None: ...


T = TypeVar("T", bound=Closable)


class Resources(AsyncExitStack):
    """Closes parts in the reverse order of `closing`; a part that fails to close stops no other."""

    def closing(self, part: T) -> T:
        """Registers `part` and returns it. Comes before its opening, which may fail half-way."""
        self.push_async_callback(part.close)
        return part

    def repeat(
        self,
        once: Callable[[], Awaitable[bool | None]],
        every_s: float,
        failed: Callable[[Exception, float], None],
        name: str,
    ) -> None:
        """Runs `once` now and every `every_s`, until the parts are closed (`start_periodic`)."""
        task = start_periodic(once, every_s, failed, name=name, at_once=True)
        self.push_async_callback(end_tasks, [task])


class Reloadable:
    """Adapters that a reload replaces. Replaced ones stay open `grace_s`, for calls under way."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._current: list[Closable] = []
        self._replaced: set[asyncio.Task[None]] = set()
        self._ending = asyncio.Event()

    def replace(self, parts: Iterable[Closable]) -> None:
        """Takes `parts` in place of the current ones."""
        replaced, self._current = self._current, list(parts)
        if replaced:
            spawn(self._close_later(replaced), self._replaced)

    async def close(self) -> None:
        """Closes the current adapters and the replaced ones, now."""
        self.replace([])
        self._ending.set()
        await asyncio.gather(*self._replaced)

    async def _close_later(self, parts: Iterable[Closable]) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._grace_s):
                await self._ending.wait()
        for part in parts:
            await part.close()


@dataclass(frozen=True)
class WingEnvironment:
    """Where a wing finds its stores, its files and the other applications.

    `ingress_url` reaches the other applications, with the delegations of `access`.
    `lookup` reads a variable of the environment, by the names that the YAML gives. `proxy_for`
    returns the forward proxy for a URL of another machine, if there is one.
    """

    database_url: str = field(repr=False)
    data_dir: Path
    ingress_url: str
    access: Authentication
    nats_url: str | None = field(default=None, repr=False)
    lookup: Callable[[str], str | None] = field(default=lambda _name: None, repr=False)
    proxy_for: Callable[[str], str | None] = field(default=no_proxy, repr=False)

    def policy_service(self, events: EventLog) -> PolicyServiceClient:
        """Returns the client of the policy service that `access.yaml` names now, if it does."""

        def settings() -> PolicyServiceSettings | None:
            self.access.directory.applied()
            return self.access.directory.section("policy_service", PolicyServiceSettings)

        return PolicyServiceClient(settings, self.lookup, events)

    @classmethod
    def of(cls, environment: Environment, access: Authentication) -> WingEnvironment:
        """Raises ConfigurationError when no PostgreSQL is known."""
        stores = find_stores(environment)
        return cls(
            database_url=stores.database_url,
            data_dir=environment.data_dir,
            ingress_url=environment.ingress_url,
            access=access,
            nats_url=stores.nats_url,
            lookup=environment.secret,
            proxy_for=environment.proxy_for,
        )


def tune_interpreter() -> None:
    """Sets garbage collection and thread switching for a process with one busy event loop."""
    gc.set_threshold(COLLECT_AFTER, 20, 20)
    sys.setswitchinterval(SWITCH_AFTER_S)


def open_event_log(
    environment: Environment,
    application: str,
    *,
    resources: Resources | None = None,
    listeners: Iterable[Listener] | None = None,
) -> FileEventLog:
    """Returns this process's event log, `<data dir>/logs/events/<application>-<pid>.jsonl`.

    `resources` close it; without them it lives as long as the process. With them the process also
    traces, where the environment asks for that: it needs an end, at which the last spans are sent.
    `listeners` take the place of Ray's metrics.
    """
    path = environment.data_dir / "logs" / "events" / f"{application}-{os.getpid()}.jsonl"
    if listeners is None:
        # A plain process gives its own: it knows no Ray.
        from deployments.graph.metrics import event_metrics  # noqa: PLC0415

        listeners = [event_metrics(application)]
    log = FileEventLog(path, application, listeners)
    if resources is not None:
        resources.push_async_callback(asyncio.to_thread, log.close)
        traces = Traces(environment.secret, application, log)
        resources.push_async_callback(asyncio.to_thread, traces.close)
        traces.open()
    return log


async def open_access(
    environment: Environment, events: EventLog, resources: Resources
) -> Authentication:
    """Returns what knows this process's callers; it follows the store of principals.

    Raises ConfigurationError when no PostgreSQL is known.
    """
    limits = PoolLimits(min_size=1, max_size=4)
    database = Database(
        find_stores(environment).database_url, events=events, limits=limits, name="access"
    )
    await resources.closing(database).open()
    directory = resources.closing(Directory(PostgresPrincipals(database, events), events))
    await directory.start()
    audit = resources.closing(
        AuditTrail(
            PostgresAudit(database), events, lambda: directory.section("audit", AuditSettings)
        )
    )
    audit.start()
    tokens = Tokens(directory, partial(read_keys, environment.proxy_for))
    failed = failure_event(events, "access.keys_not_read", defect="access.defect")
    resources.repeat(tokens.refresh, TICK_S, failed, "access:tokens")
    return Authentication(
        environment.internal_secret, environment.admin_secret, directory, tokens, audit
    )


def access_control(environment: Environment, access: Authentication) -> AccessControl:
    """Returns the check of callers, before the replica listens.

    Serve knows the address: its own commands deploy the graph without `DAARION_HOST`.

    Raises:
        ConfigurationError: the replica listens on another address than loopback, and no secret is
            set, or a short one.
    """
    host = serve_host()
    if host is not None:
        refuse_open_ingress(host, environment, f"Serve's http_options.host {host}")
    return AccessControl(access, environment.allowed_hosts)
