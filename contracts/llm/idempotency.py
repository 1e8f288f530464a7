"""The storage port of idempotency keys of LLM calls.

Keys and fingerprints are SHA-256 digests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol
from uuid import UUID


@dataclass(frozen=True, slots=True)
class KeyUse:
    """One use of a key: whose, which, and for what request."""

    microdao_id: str
    key: bytes
    fingerprint: bytes
    agent_id: str
    channel_id: str | None = None


@dataclass(frozen=True, slots=True)
class Granted:
    """The key is this caller's: only this `lease` may renew, settle or release it."""

    lease: UUID


@dataclass(frozen=True, slots=True)
class Settled:
    """The key has its answer, as JSON."""

    answer: str


@dataclass(frozen=True, slots=True)
class InWork:
    """Another attempt holds the key."""


class IdempotencyStore(Protocol):
    """Keys of all replicas.

    An attempt whose lease is over has lost its key to the next one that asks.
    """

    async def begin(
        self, use: KeyUse, lease_s: float, retention_s: float
    ) -> Granted | Settled | InWork:
        """Takes the key, or returns its state. Raises IdempotencyConflict: it was used for another
        request.
        """

    async def renew(self, use: KeyUse, lease: UUID, lease_s: float) -> bool:
        """Renews the lease; returns whether this attempt still holds the key."""

    async def settle(self, use: KeyUse, lease: UUID, answer: bytes, retention_s: float) -> bool:
        """Stores the answer for `retention_s`; returns whether this attempt still held the key."""

    async def release(self, use: KeyUse, lease: UUID) -> None:
        """Deletes the key if this attempt still holds it."""

    async def purge(self) -> int:
        """Deletes expired keys; returns how many."""
