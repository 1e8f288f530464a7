"""Callers for tests: what is known of them without a store, and with that of a database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import uuid4

from backends.access.principals import PostgresPrincipals
from backends.postgres.pool import Database, PoolLimits
from contracts.access.keys import LiveKey, PrincipalStore, Snapshot, key_hash
from contracts.access.principals import Grants
from contracts.events import EventLog
from contracts.health import Health
from interfaces.http.access import access_router, is_admin
from interfaces.http.base.access import AccessControl
from interfaces.http.base.ingress import Ingress
from interfaces.http.graph.root import root_router
from services.access.audit import AuditTrail
from services.access.authentication import Authentication
from services.access.directory import Directory
from tests.support.events import RecordedEvents
from tests.support.uvicorn_server import served

APPLIED = {"audit": {"keep_days": 400}}
"""Of `access.yaml`, once it has come to the store."""
SIGNING_KEY = b"a key that all processes of the tests share".ljust(64)


def fixed_access(
    internal: str | None = None,
    admin: str | None = None,
    *,
    principals: Mapping[str, Grants] | None = None,
    keys: Mapping[str, str] | None = None,
    audit: AuditTrail | None = None,
    settings: Mapping[str, object] | None = None,
) -> Authentication:
    """Returns what knows the secrets, these principals and other sections of `access.yaml`; `keys`
    maps a key to a principal.
    """
    directory = Directory(cast("Any", None), RecordedEvents())
    live = {
        key_hash(key.encode()): LiveKey(uuid4(), name, None) for key, name in (keys or {}).items()
    }
    directory.take(
        Snapshot(1, principals or {}, live, SIGNING_KEY, {**APPLIED, **(settings or {})})
    )
    return Authentication(internal, admin, directory, audit=audit)


def access_control(
    internal: str | None = None,
    admin: str | None = None,
    allowed_hosts: Collection[str] = (),
    **known: Any,
) -> AccessControl:
    """Returns access control over `fixed_access`."""
    return AccessControl(fixed_access(internal, admin, **known), allowed_hosts)


@asynccontextmanager
async def opened_access(
    database_url: str, events: EventLog, internal: str | None = None, admin: str | None = None
) -> AsyncIterator[Authentication]:
    """Yields what knows the principals of a migrated database."""
    database = Database(database_url, events=events, limits=PoolLimits(min_size=1, max_size=2))
    await database.open()
    directory = Directory(PostgresPrincipals(database, events), events)
    await directory.start()
    try:
        yield Authentication(internal, admin, directory)
    finally:
        await directory.close()
        await database.close()


@asynccontextmanager
async def served_keys(access: Authentication, store: PrincipalStore, events: EventLog) -> Any:
    """Yields the URL of the root application with the routes of principals and keys."""
    router = root_router(lambda: Health(status="ready"), dict, [], access_router(store, None))
    ingress = Ingress(router, AccessControl(access), events, max_concurrent=20, is_admin=is_admin)
    async with served(ingress) as url:
        yield url


async def apply_file(
    access: Authentication,
    principals: Mapping[str, Grants],
    keys: Mapping[str, str],
    **settings: Any,
) -> None:
    """Makes this `access.yaml`, and lets `access` read it; `keys` maps a key to a principal."""
    hashes = [(name, "", key_hash(key.encode())) for key, name in keys.items()]
    await access.directory.store.apply(principals, hashes, APPLIED | settings)
    await access.directory.refresh()
