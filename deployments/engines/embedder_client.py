"""The Embedder port over the deployment's handle, and the choice of that or an endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from configs.engines.embedder import EmbedderSettings, RemoteEmbedderSettings
from configs.environment import Environment
from contracts.deadline import Deadline
from contracts.errors import EngineUnavailable
from contracts.llm.embeddings import (
    EmbeddingBatch,
    EmbeddingInput,
    EmbeddingKind,
    EmbeddingSpace,
    TokenEmbedder,
)
from deployments.engines.app import APPLICATION, EMBEDDER
from deployments.engines.llm_client import LateHandle, unwrapped
from providers.embeddings import OpenAIEmbedder

_ENGINE = "the embedder"
PROBE_S = 5.0


class OpenEmbedder(TokenEmbedder, Protocol):
    """An embedder that can be probed and closed."""

    async def ping(self) -> None:
        """Raises EngineUnavailable or an UpstreamError while it cannot embed."""

    async def close(self) -> None: ...


def open_embedder(
    settings: EmbedderSettings, environment: Environment, *, own_vectors: bool = False
) -> OpenEmbedder:
    """Returns the configured embedder; to be called on the running event loop.

    Its vectors are memory's; with `own_vectors` the model's own.

    Raises:
        ConfigurationError: the environment variable with the endpoint's key is not set.
    """
    if isinstance(settings, RemoteEmbedderSettings):
        return OpenAIEmbedder(settings, environment.secret, environment.proxy_for)
    return EmbedderClient(
        settings.space if own_vectors else settings.memory_space, own_vectors=own_vectors
    )


class EmbedderClient:
    """Calls the deployment `Embedder` of the application `engines`."""

    def __init__(self, space: EmbeddingSpace, *, own_vectors: bool = False) -> None:
        self._space = space
        self._own_vectors = own_vectors
        self._handle = LateHandle(EMBEDDER, APPLICATION, _ENGINE)
        self.model_version = space.model_version
        self.dimension = space.dimension

    async def embed(
        self,
        texts: Sequence[EmbeddingInput],
        kind: EmbeddingKind,
        *,
        tenant: str,
        deadline: Deadline,
    ) -> EmbeddingBatch:
        """Returns one vector per text; see `contracts.llm.embeddings.TokenEmbedder`."""
        deadline.check()
        batch: EmbeddingBatch = await self._call(
            "embed",
            deadline,
            list(texts),
            kind,
            tenant,
            deadline.remaining(),
            own_vectors=self._own_vectors,
        )
        if batch.space != self._space:
            raise EngineUnavailable(
                "the embedder is being replaced by another version: retry", retry_after_s=PROBE_S
            )
        return batch

    async def stats(self) -> dict[str, Any]:
        """Returns the counters of one replica. Raises EngineUnavailable while none is ready."""
        stats: dict[str, Any] = await self._call("stats", Deadline.after(PROBE_S))
        return stats

    async def ping(self) -> None:
        """Raises EngineUnavailable while no replica is ready."""
        await self.stats()

    async def close(self) -> None:
        """Holds nothing open."""

    async def _call(
        self, method: str, deadline: Deadline, *arguments: object, **named: object
    ) -> Any:
        try:
            async with asyncio.timeout(deadline.remaining()):
                return await getattr(self._handle.found(), method).remote(*arguments, **named)
        except TimeoutError:
            raise deadline.exceeded() from None
        except Exception as error:  # noqa: BLE001  # whatever Ray raises becomes a leaf
            raise unwrapped(error, _ENGINE) from None
