"""The local embedding model inside this process, for commands that run beside the graph."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from configs.engines.embedder import LocalEmbedderSettings, embedder_source
from configs.environment import Environment
from contracts.deadline import Deadline
from contracts.llm.embeddings import EmbeddingBatch, EmbeddingKind
from deployments.engines.sentence_encoder import SentenceEncoder


class InProcessEmbedder:
    """Implements the Embedder port for one caller at a time. The constructor loads the model.

    Raises:
        ConfigurationError: the model cannot be loaded.
    """

    def __init__(self, settings: LocalEmbedderSettings, environment: Environment) -> None:
        self._encoder = SentenceEncoder(settings, embedder_source(settings, environment))
        self.model_version = settings.memory_space.model_version
        self.dimension = settings.memory_space.dimension

    async def embed(
        self,
        texts: Sequence[str],
        kind: EmbeddingKind,
        *,
        tenant: str,  # noqa: ARG002  # the port's
        deadline: Deadline,
    ) -> EmbeddingBatch:
        """Returns one vector per text."""
        deadline.check()
        encoded = await asyncio.to_thread(self._encoder.encode, texts, kind)
        vectors = self._encoder.neutral(texts, [vector for vector, _ in encoded])
        return EmbeddingBatch(
            b"".join(vectors),
            self.dimension,
            self.model_version,
            sum(count for _, count in encoded),
        )
