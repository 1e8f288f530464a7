"""Embeddings: the port, a batch of vectors, and the space that vectors of one model share."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from contracts.deadline import Deadline
from contracts.errors import ConfigurationError

EmbeddingKind = Literal["query", "passage"]
EmbeddingInput = str | Sequence[int]
"""A text, or the tokens of one."""
MAX_TEXTS_PER_CALL = 512
FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class EmbeddingSpace:
    """Vectors of one space are comparable: the model version that made them, their dimension."""

    model_version: str
    dimension: int


@dataclass(frozen=True, slots=True)
class EmbeddingBatch:
    """Unit vectors of some texts, in the order of the texts.

    `data` holds the vectors row by row as little-endian float32 without padding: one buffer crosses
    a process boundary at the cost of a copy, where lists of floats cost nine bytes and an object
    each. numpy reads it without a copy: `numpy.frombuffer(batch.data, "<f4").reshape(len(batch),
    batch.dimension)`. `tokens` is the model's own count over all texts, prefixes included.
    """

    data: bytes
    dimension: int
    model_version: str
    tokens: int = 0

    def __len__(self) -> int:
        return len(self.data) // (self.dimension * FLOAT_BYTES)

    @property
    def space(self) -> EmbeddingSpace:
        """The space these vectors belong to."""
        return EmbeddingSpace(self.model_version, self.dimension)

    def row_bytes(self, index: int) -> bytes:
        """Returns one vector as little-endian float32."""
        width = self.dimension * FLOAT_BYTES
        return self.data[index * width : (index + 1) * width]

    def row(self, index: int) -> list[float]:
        """Returns one vector."""
        return list(struct.unpack(f"<{self.dimension}f", self.row_bytes(index)))


class Embedder(Protocol):
    """Turns texts into unit vectors of one space.

    `model_version` and `dimension` come from configuration and are known before the first call.
    """

    model_version: str
    dimension: int

    async def embed(
        self, texts: Sequence[str], kind: EmbeddingKind, *, tenant: str, deadline: Deadline
    ) -> EmbeddingBatch:
        """Returns one vector per text; texts beyond the model's window are cut at its end.

        Queries go before passages, and among each the tenants take turns. Cancelling the call drops
        the work that has not begun.

        Raises:
            InvalidRequest: no text, or more than MAX_TEXTS_PER_CALL.
            Overloaded: this tenant's share of the queue, or the whole queue, is full: retry.
            EngineUnavailable | UpstreamError: the embedder is away.
            DeadlineExceeded: the deadline passed first.

        """


class TokenEmbedder(Embedder, Protocol):
    """Reads arrays of tokens too: those of its own model's tokenizer."""

    async def embed(
        self,
        texts: Sequence[EmbeddingInput],
        kind: EmbeddingKind,
        *,
        tenant: str,
        deadline: Deadline,
    ) -> EmbeddingBatch:
        """As Embedder.

        Raises:
            InvalidRequest: tokens that are not the model's own, besides what Embedder refuses.
        """


def check_embedding_space(recorded: EmbeddingSpace | None, configured: EmbeddingSpace) -> None:
    """Refuses to search vectors of one model with another's: their distances would mean nothing.

    `recorded` is the space of the vectors that searches run on, None while nothing is stored;
    `configured` is the one that queries would be embedded in.

    Raises:
        ConfigurationError: they differ.

    """
    if recorded is None or recorded == configured:
        return
    raise ConfigurationError(
        f"the stored memory was embedded with `{recorded.model_version}` "
        f"({recorded.dimension} dimensions), but the configuration names "
        f"`{configured.model_version}` ({configured.dimension}): "
        "set the embedder back to the former, or re-embed into the new one first"
    )
