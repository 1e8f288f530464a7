"""Reorders a query's best items by a cross-encoder, which reads question and text together.

`score = (1 − weight)·fused + weight·r`, where `r` is the cross-encoder's score: a text that only
repeats the question's words falls. Items that it did not read stay below the others: their scores
are at most the lowest of those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.tracing import spanned
from contracts.deadline import Deadline
from contracts.errors import DaarionError
from contracts.events import EventLog
from contracts.llm.reranking import Reranker
from contracts.memory.api import Item, QueryRequest
from contracts.memory.settings import RerankSettings

NAME = "rerank"
"""Its name in `degraded`, in events and in `explain`."""
SHARE_OF_TIME = 0.8
"""Of the query's remaining time: the rest is for the answer without the scores."""


@dataclass(frozen=True)
class Reranking:
    """The step after fusion; without a `reranker` it changes nothing."""

    reranker: Reranker | None
    settings: RerankSettings
    events: EventLog

    @property
    def candidates(self) -> int:
        """How many items it reads."""
        return self.settings.candidates if self.reranker is not None else 0

    async def reordered(
        self, request: QueryRequest, items: Sequence[Item], deadline: Deadline, request_id: str
    ) -> tuple[list[Item], list[str]]:
        """Returns the items, best first, and what failed: nothing, or this step's name.

        `items` come best first with their fused scores, which stay when the scores fail or are
        late.
        """
        read = items[: self.candidates]
        if self.reranker is None or not read:
            return list(items), []
        try:
            scores = await spanned(
                "memory.rerank",
                self.reranker.score,
                request.query,
                [item.content for item in read],
                tenant=f"{request.microdao_id}/{request.agent_id}",
                deadline=Deadline.after(
                    min(self.settings.timeout_s, SHARE_OF_TIME * deadline.remaining())
                ),
            )
        except DaarionError as error:
            self.events.emit("memory.arm_down", request_id=request_id, arm=NAME, error=error.type)
            return list(items), [NAME]
        scored = [
            _rescored(item, score, self.settings.weight)
            for item, score in zip(read, scores, strict=True)
        ]
        scored.sort(key=lambda item: -(item.score or 0.0))
        lowest = scored[-1].score or 0.0
        rest = [
            item.model_copy(update={"score": min(item.score or 0.0, lowest)})
            for item in items[len(read) :]
        ]
        return [*scored, *rest], []


def _rescored(item: Item, score: float, weight: float) -> Item:
    explain = item.explain and {
        **item.explain,
        "scores": {**item.explain["scores"], NAME: round(score, 6)},
    }
    return item.model_copy(
        update={
            "score": round((1 - weight) * (item.score or 0.0) + weight * score, 6),
            "explain": explain,
        }
    )
