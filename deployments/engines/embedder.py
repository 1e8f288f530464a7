"""The deployment `Embedder`: texts to vectors, in batches from two fair lanes.

Callers reach it through its handle (deployments/engines/clients.py) and never import torch.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from configs.engines.embedder import LocalEmbedderSettings
from contracts.deadline import Deadline
from contracts.errors import InvalidRequest
from contracts.llm.embeddings import (
    MAX_TEXTS_PER_CALL,
    EmbeddingBatch,
    EmbeddingInput,
    EmbeddingKind,
)
from deployments.engines.lanes import Batcher, FairLanes, estimated_tokens
from deployments.engines.sentence_encoder import SentenceEncoder


class LocalEmbedder:
    """One model with its lanes.

    The model works in a thread of its own, so that calls are accepted, ordered and refused
    meanwhile.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, settings: LocalEmbedderSettings, source: str
    ) -> None:
        self._settings = settings
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder")
        loop = asyncio.get_running_loop()
        self._encoder = await loop.run_in_executor(self._thread, SentenceEncoder, settings, source)
        self._embedded = {"query": 0, "passage": 0}
        self._tokens = 0
        await self._warm_up()
        self._batcher = Batcher(
            FairLanes(settings.batch, settings.queue),
            self._thread,
            self._encoder.encode,
            lambda text: min(settings.max_tokens, estimated_tokens(text)),
            "embedder",
        )

    async def embed(
        self,
        inputs: Sequence[EmbeddingInput],
        kind: EmbeddingKind,
        tenant: str,
        seconds: float,
        *,
        own_vectors: bool = False,
    ) -> EmbeddingBatch:
        """Returns one vector per text.

        The vectors are memory's; with `own_vectors` the model's own, as any server of the model
        gives them. `seconds` remain of the caller's deadline.

        Raises:
            InvalidRequest: no text, more than MAX_TEXTS_PER_CALL, or tokens of another tokenizer.
            Overloaded: the tenant's share of the queue, or the whole queue, is full.
            DeadlineExceeded: the vectors were not ready in time; texts still waiting are dropped.
            EngineUnavailable: the model failed on this batch.
        """
        if not 0 < len(inputs) <= MAX_TEXTS_PER_CALL:
            raise InvalidRequest(f"send from 1 to {MAX_TEXTS_PER_CALL} texts a call")
        deadline = Deadline.after(seconds)
        texts = await self._texts_of(inputs)
        rows = await self._batcher.answers(texts, kind, tenant, deadline)
        tokens = sum(count for _, count in rows)
        self._embedded[kind] += len(rows)
        self._tokens += tokens
        vectors = [data for data, _ in rows]
        space = self._settings.space if own_vectors else self._settings.memory_space
        if not own_vectors:
            vectors = self._encoder.neutral(texts, vectors)
        return EmbeddingBatch(b"".join(vectors), space.dimension, space.model_version, tokens)

    async def stats(self) -> dict[str, Any]:
        """Returns the embedder's state and its counts since the replica's start."""
        return {
            "ready": True,
            "model_version": self._settings.memory_space.model_version,
            "dimension": self._settings.dimension,
            "waiting": self._batcher.lanes.waiting,
            "embedded": dict(self._embedded),
            "tokens": self._tokens,
        }

    async def check_health(self) -> None:
        """Called by Serve, which replaces the replica when this raises.

        Raises:
            EngineUnavailable: the dispatcher has ended, or a batch hangs.
        """
        self._batcher.check()

    async def _texts_of(self, inputs: Sequence[EmbeddingInput]) -> list[str]:
        texts = [given for given in inputs if isinstance(given, str)]
        if len(texts) == len(inputs):
            return texts
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._encoder.texts_of, inputs
        )

    async def _encoded(self, texts: list[str], kind: EmbeddingKind) -> list[tuple[bytes, int]]:
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._encoder.encode, texts, kind
        )

    async def _warm_up(self) -> None:
        """Encodes a short and a full-length text: the first of each allocates lazily."""
        await self._encoded(["warm up"], "query")
        await self._encoded(["warm " * self._settings.max_tokens], "passage")
