"""What a replica knows of principals: a snapshot that follows the store's revision."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar, cast
from uuid import UUID

from pydantic import BaseModel, ValidationError

from common.periodic import start_periodic
from common.tasks import end_tasks
from contracts.access.keys import PrincipalStore, Snapshot, key_hash
from contracts.access.principals import BUILT_IN, OURSELVES, Grants, Principal
from contracts.access.settings import IdentityProviderSettings
from contracts.errors import Forbidden, Unauthorized, Unavailable
from contracts.events import EventLog, failure_event
from contracts.identity import Tenant

REFRESH_S = 2.0

Section = TypeVar("Section", bound=BaseModel)


class Directory:
    """Principals by key and by name. A change reaches every replica within `REFRESH_S`.

    While the database is away the last snapshot counts, and keys still expire.
    """

    def __init__(self, store: PrincipalStore, events: EventLog) -> None:
        self.store = store
        self._events = events
        self._snapshot: Snapshot | None = None
        self._by_name: dict[str, Principal] = {}
        self._sections: dict[str, BaseModel | None] = {}
        self._used: set[UUID] = set()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Reads once, if the database answers, and begins to follow."""
        failed = failure_event(self._events, "access.not_read", defect="access.defect")
        try:
            await self.refresh()
        except Exception as error:  # noqa: BLE001  # the task tries again
            failed(error, REFRESH_S)
        self._task = start_periodic(self.refresh, REFRESH_S, failed, name="access:directory")

    async def close(self) -> None:
        """Stops following."""
        if self._task is not None:
            await end_tasks([self._task])

    async def refresh(self) -> None:
        """Reads what has changed, and records the use of keys. Raises DatabaseUnavailable."""
        if self._snapshot is None or await self.store.revision() != self._snapshot.revision:
            self.take(await self.store.load())
        if self._used:
            used, self._used = self._used, set()
            await self.store.touch(used)

    @property
    def revision(self) -> int:
        """The revision that is known; -1 before the first read."""
        return -1 if self._snapshot is None else self._snapshot.revision

    def applied(self) -> None:
        """Raises Unavailable until `access.yaml` has come to the store once, and from there."""
        if not self.known().settings:
            raise Unavailable("access.yaml is not known yet: retry", retry_after_s=REFRESH_S)

    def known(self) -> Snapshot:
        """Returns what is known. Raises Unavailable before the first read."""
        if self._snapshot is None:
            raise Unavailable("keys cannot be checked yet: retry", retry_after_s=REFRESH_S)
        return self._snapshot

    def section(self, name: str, model: type[Section]) -> Section | None:
        """Returns a section of `access.yaml`, if it is given and known already.

        Raises Unavailable for one that another version wrote.
        """
        if name not in self._sections:
            found: Any = None if self._snapshot is None else self._snapshot.settings.get(name)
            try:
                self._sections[name] = None if found is None else model.model_validate(found)
            except ValidationError:
                message = f"this version cannot read `{name}` of access.yaml: retry"
                raise Unavailable(message, retry_after_s=REFRESH_S) from None
        return cast("Section | None", self._sections[name])

    def of_key(self, presented: bytes) -> Principal:
        """Returns the principal of a key.

        Raises:
            Unauthorized: no live key.
            Unavailable: before the first read.
        """
        key = self.known().keys.get(key_hash(presented))
        if key is None or (key.expires_at is not None and key.expires_at <= datetime.now(UTC)):
            raise Unauthorized("this key is unknown, revoked or expired: ask for a new one")
        self._used.add(key.id)
        return self.named(key.principal)

    def named(self, name: str, issued: Grants | None = None) -> Principal:
        """Returns the principal of that name, as it is now.

        `issued` are the grants of one that an identity provider vouched for.

        Raises:
            Forbidden: there is no such principal any more.
            Unavailable: before the first read.
        """
        if name in BUILT_IN:
            return BUILT_IN[name]
        if issued is not None:
            provider = self.section("identity_provider", IdentityProviderSettings)
            if provider is None or not provider.vouches_for(name, issued):
                raise _withdrawn(name)
            return Principal(name, issued, name, issued=True)
        if name not in self.known().principals:
            raise _withdrawn(name)
        return self._by_name[name]

    def claimed(self, claims: Mapping[str, Any] | None) -> Principal:
        """Returns the principal of these `Principal.claims` as it is now; of none, the graph.

        Raises:
            Forbidden: it was withdrawn, or may no longer act for this agent and microDAO.
            Unavailable: before the first read.
        """
        if claims is None:
            return OURSELVES
        grants, tenant = claims.get("grants"), claims.get("tenant")
        issued = None if grants is None else Grants.model_validate(grants)
        found = self.named(claims["sub"], issued)
        found = replace(found, credential=claims.get("credential", found.credential))
        return found if tenant is None else found.narrowed(Tenant.model_validate(tenant))

    def find(self, name: str) -> Principal | None:
        """Returns the stored principal of that name, if it is known."""
        return self._by_name.get(name)

    def take(self, snapshot: Snapshot) -> None:
        """Replaces what is known; what is equal stays the same object, with what it has cached."""
        before = self._by_name
        self._by_name = {
            name: before[name]
            if name in before and before[name].grants == grants
            else Principal(name, grants, name)
            for name, grants in snapshot.principals.items()
        }
        if self._snapshot is None or self._snapshot.settings != snapshot.settings:
            self._sections = {}
        self._snapshot = snapshot


def _withdrawn(name: str) -> Forbidden:
    return Forbidden(f"the principal `{name[:100]}` was withdrawn")
