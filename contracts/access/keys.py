"""Keys of principals: how they look, what is stored of them, and the port of their store."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal, Protocol
from uuid import UUID

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from contracts.access.principals import Grants
from contracts.identity import Page, PageQuery
from contracts.shapes import Frozen, Strict
from contracts.values import storable

KEY_HEADERS = frozenset({"x-internal-secret", "x-api-key"})
CREDENTIAL_HEADERS = KEY_HEADERS | {"authorization"}
KEY_PREFIX = "dk_"
MAX_LIVE_KEYS = 2
_HINT_CHARS = 8

Origin = Literal["file", "api"]
Label = Annotated[str, StringConstraints(max_length=200), AfterValidator(storable)]


def new_key() -> str:
    """Returns a key with 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def key_hash(key: bytes) -> bytes:
    """Returns what is stored of a key. One round is enough: a key cannot be guessed."""
    return hashlib.sha256(key).digest()


def key_hint(key: str) -> str:
    """Returns the beginning of a key, by which its owner knows it."""
    return key[:_HINT_CHARS] + "…"


class NewKey(Strict):
    """Body of `POST /principals/{name}/keys`. Without `expires_in_days` a key lives until it is
    revoked.
    """

    label: Label = ""
    expires_in_days: Annotated[float, Field(gt=0, le=3_650, allow_inf_nan=False)] | None = None


class Rotation(NewKey):
    """Body of `POST /principals/{name}/rotate`: the present keys live for `grace_s` more."""

    grace_s: Annotated[float, Field(ge=0, le=90 * 86_400, allow_inf_nan=False)] = 86_400.0


class Key(Frozen):
    """A live key. `hint` is its beginning; `last_used_at` is late by up to a minute."""

    id: UUID
    label: str
    hint: str
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None


class IssuedKey(Key):
    """A new key. `key` is shown here alone: only a hash of it is stored."""

    key: str


class PrincipalView(BaseModel):
    """A principal with its live keys. One of origin `file` stands in `access.yaml`."""

    name: str
    origin: Origin
    grants: Grants
    keys: list[Key]
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class LiveKey:
    """What replicas know of a key."""

    id: UUID
    principal: str
    expires_at: datetime | None


@dataclass(frozen=True)
class Snapshot:
    """Everything that replicas know of principals. `signing_key` signs delegations."""

    revision: int
    principals: Mapping[str, Grants]
    keys: Mapping[bytes, LiveKey]
    signing_key: bytes
    settings: Mapping[str, object]


class PrincipalStore(Protocol):
    """Stores principals and keys. Raises DatabaseUnavailable while the database is away."""

    async def revision(self) -> int:
        """Returns a number that grows with every change."""

    async def load(self) -> Snapshot:
        """Returns everything that is live, without unreadable rows."""

    async def touch(self, key_ids: Collection[UUID]) -> None:
        """Records that these keys were used now."""

    async def page(self, query: PageQuery) -> Page[PrincipalView]:
        """Returns one page, newest first, without unreadable rows.

        Raises InvalidRequest for a foreign cursor.
        """

    async def find(self, name: str) -> PrincipalView:
        """Returns one principal. Raises NotFound, or Conflict for an unreadable row."""

    async def put(self, name: str, grants: Grants) -> tuple[PrincipalView, bool]:
        """Creates or changes a principal; the flag tells whether it is new.

        Raises Conflict when it stands in `access.yaml`.
        """

    async def delete(self, name: str) -> None:
        """Removes a principal and its keys. Raises NotFound, or Conflict as `put`."""

    async def add_key(self, name: str, wanted: NewKey) -> IssuedKey:
        """Makes a key and stores its hash; a Rotation also ends the present ones.

        Raises NotFound, or Conflict when two keys are live.
        """

    async def revoke(self, name: str, key_id: UUID) -> None:
        """Ends a key now. Raises NotFound."""

    async def apply(
        self,
        principals: Mapping[str, Grants],
        keys: Sequence[tuple[str, str, bytes]],
        settings: Mapping[str, object],
    ) -> None:
        """Makes the principals of origin `file` equal `principals` and stores `settings`.

        `keys` are principal, label and hash. A revoked key stays revoked.
        """
