"""Storage quotas: how much a microDAO may store."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

from pydantic import Field

from contracts.identity import Identifier
from contracts.shapes import Strict

StoredKind = Literal["memories", "messages", "documents"]
Count = Annotated[int, Field(ge=0, le=10**12)]


class Quota(Strict):
    """What a microDAO may store; null is unlimited, and for a named microDAO the default."""

    memories: Count | None = None
    messages: Count | None = None
    documents: Count | None = None


class QuotaSettings(Strict):
    """The section `quotas` of `access.yaml`."""

    default: Quota = Quota()
    microdaos: dict[Identifier, Quota] = Field(default={}, max_length=100_000)

    def limit(self, kind: StoredKind, microdao_id: str) -> int | None:
        """Returns how many a microDAO may store; None is unlimited."""
        own: int | None = getattr(self.microdaos.get(microdao_id), kind, None)
        default: int | None = getattr(self.default, kind)
        return default if own is None else own


class StoredCounts(Protocol):
    """Counts what a microDAO stores."""

    async def stored(
        self, kind: Literal["memories", "messages"], microdao_id: str, at_most: int
    ) -> int:
        """Returns the number, or `at_most` where there are more."""
