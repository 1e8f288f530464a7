"""Reranking: the port of a model that reads a question and a text together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from contracts.deadline import Deadline


class Reranker(Protocol):
    """Says how well texts answer a question."""

    async def score(
        self, question: str, texts: Sequence[str], *, tenant: str, deadline: Deadline
    ) -> list[float]:
        """Returns one score in 0..1 per text, 1 where the model is sure that it answers.

        Texts beyond the model's window are cut. Tenants take turns. Cancelling the call drops the
        work that has not begun.

        Raises:
            InvalidRequest: no text, or more than MAX_TEXTS_PER_CALL of the embeddings.
            Overloaded: this tenant's share of the queue, or the whole queue, is full: retry.
            EngineUnavailable: the reranker is away.
            DeadlineExceeded: the deadline passed first.

        """
