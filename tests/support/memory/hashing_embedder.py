"""A deterministic embedder without a model: words and prefixes hashed into a unit vector."""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Sequence

import numpy as np

from contracts.deadline import Deadline
from contracts.errors import DaarionError, EngineUnavailable
from contracts.llm.embeddings import EmbeddingBatch, EmbeddingKind

DIMENSION = 384


class HashingEmbedder:
    """Implements the Embedder port.

    `away` is raised by every call; `delay_s` delays each; passages wait for `gate`. `tenants` has
    the tenant of each call that embedded passages.
    """

    def __init__(self, model_version: str = "hashing-1", dimension: int = DIMENSION) -> None:
        self.model_version = model_version
        self.dimension = dimension
        self.away: DaarionError | None = None
        self.delay_s = 0.0
        self.passages = 0
        self.tenants: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def embed(
        self, texts: Sequence[str], kind: EmbeddingKind, *, tenant: str, deadline: Deadline
    ) -> EmbeddingBatch:
        deadline.check()
        await asyncio.sleep(self.delay_s)
        if self.away is not None:
            raise self.away
        if kind == "passage":
            await self.gate.wait()
            self.tenants.append(tenant)
            self.passages += len(texts)
        vectors = np.array([vector(text, self.dimension) for text in texts], "<f4")
        return EmbeddingBatch(vectors.tobytes(), self.dimension, self.model_version)

    def go_away(self) -> None:
        self.away = EngineUnavailable("the embedder is away: retry")

    def come_back(self) -> None:
        self.away = None


def vector(text: str, dimension: int = DIMENSION) -> list[float]:
    values = [0.01] * dimension
    for word in text.casefold().split():
        for part in {word, word[:4]}:
            values[zlib.crc32(part.encode("utf-8", "replace")) % dimension] += 1.0
    norm = math.sqrt(sum(value * value for value in values))
    return [value / norm for value in values]
