"""The one limit authority of a cluster: a named actor around the lease book, and the replicas' way to it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import ray
from ray.exceptions import RayError

from contracts.errors import LimitsUnavailable
from services.llm_proxy.leases import Grant, LeaseBook, Settlement

NAME = "daarion-limits"
NAMESPACE = "daarion"
CALL_TIMEOUT_S = 1.0


class LimitAuthority:
    """Answers from memory alone. Time is this process's monotonic clock."""

    def __init__(self) -> None:
        self._book = LeaseBook()

    async def lease(self, key: str, limit: int, want: int, settled: Settlement | None) -> Grant:
        """Settles a lease and grants the next."""
        return self._book.lease(key, limit, want, time.monotonic(), settled)

    async def ping(self) -> None:
        """Answers."""


class AuthorityClient:
    """The LeaseSource port over the actor. The first replica that needs it creates it; Ray restarts it when it dies."""

    def __init__(self) -> None:
        self._actor: Any = None

    async def lease(self, key: str, limit: int, want: int, settled: Settlement | None) -> Grant:
        """Grants a lease. Raises LimitsUnavailable when the authority does not answer within a second."""
        grant: Grant = await self._called("lease", key, limit, want, settled)
        return grant

    async def ping(self) -> None:
        """Raises LimitsUnavailable when the authority does not answer."""
        await self._called("ping")

    async def _called(self, method: str, *args: Any) -> Any:
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                if self._actor is None:
                    self._actor = await asyncio.to_thread(_authority)
                return await getattr(self._actor, method).remote(*args)
        except (RayError, TimeoutError, ValueError):
            self._actor = None
            raise LimitsUnavailable("the limit authority does not answer: retry shortly", retry_after_s=1.0) from None


def _authority() -> Any:
    """Returns the actor's handle; blocking, for a thread."""
    with contextlib.suppress(ValueError):
        return ray.get_actor(NAME, namespace=NAMESPACE)
    return (
        ray.remote(LimitAuthority)
        .options(
            name=NAME, namespace=NAMESPACE, lifetime="detached", get_if_exists=True, max_restarts=-1, num_cpus=0, max_concurrency=1_000
        )
        .remote()
    )
