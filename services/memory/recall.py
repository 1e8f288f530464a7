"""Answers queries: three arms at once, fused; an arm that is down is left out and named."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from contracts.deadline import Deadline
from contracts.errors import DaarionError, DatabaseUnavailable, Internal
from contracts.events import EventLog
from contracts.llm.embeddings import Embedder
from contracts.memory.api import (
    MEMORY_META,
    Arm,
    Candidate,
    Fused,
    Item,
    QueryRequest,
    QueryResponse,
    QuerySignals,
)
from contracts.memory.ports import (
    DenseIndex,
    EventLogReader,
    Filters,
    ItemReader,
    LexicalAnswer,
    LexicalIndex,
)
from services.memory.fusion import FusionSettings, fuse
from services.memory.lexical import grams, weigh

SPARE = 10
"""Items read beyond the limit, in place of those that are gone."""


@dataclass(frozen=True, slots=True)
class RecallSettings:
    """`candidates` per arm; `recent` newest events count as short-term. Seconds: for a whole query, and for its embedding."""

    candidates: int = 100
    recent: int = 20
    timeout_s: float = 8.0
    embed_timeout_s: float = 3.0


@dataclass(frozen=True)
class Recall:
    """The use case behind `POST /query`."""

    dense: DenseIndex
    lexical: LexicalIndex
    log: EventLogReader
    items: ItemReader
    embedder: Embedder
    events: EventLog
    settings: RecallSettings
    fusion: FusionSettings

    async def query(self, request: QueryRequest, request_id: str) -> QueryResponse:
        """Returns the best items.

        Raises:
            DatabaseUnavailable: no arm can answer.
            DeadlineExceeded: not in time.
        """
        deadline = Deadline.after(
            min(request.timeout_s or self.settings.timeout_s, self.settings.timeout_s)
        )
        try:
            async with asyncio.timeout(deadline.remaining()):
                return await self._answer(request, deadline, request_id)
        except TimeoutError:
            raise deadline.exceeded() from None

    async def _answer(
        self, request: QueryRequest, deadline: Deadline, request_id: str
    ) -> QueryResponse:
        filters = Filters(request.channel_id, request.kinds, request.since, request.until)
        arms, failures, ceiling = await self._arms(request, filters, deadline)
        for arm, error in failures.items():
            defect = error.__cause__ if isinstance(error, Internal) else None
            self.events.emit(
                "memory.arm_down", request_id=request_id, arm=arm, error=error.type, exc_info=defect
            )
        signals = QuerySignals(request.query, ceiling)
        # The same text comes at most once from each of two arms, and as often as there are recent events.
        most = 2 * request.limit + self.settings.recent + SPARE
        fused = fuse(arms, signals, now=datetime.now(UTC), limit=most, settings=self.fusion)
        chunks = _shown_chunks(arms)
        items = await self.items.read(
            request, {entry.id: chunks.get(entry.id, 0) for entry in fused}
        )
        shown = _distinct([(entry, items[entry.id]) for entry in fused if entry.id in items])[
            : request.limit
        ]
        found = [_shown(entry, item, arms, explain=request.explain) for entry, item in shown]
        return QueryResponse(items=found, degraded=sorted(failures) or None)

    async def _arms(
        self, request: QueryRequest, filters: Filters, deadline: Deadline
    ) -> tuple[dict[Arm, Sequence[Candidate]], dict[Arm, DaarionError], float]:
        """Asks all arms at once; returns what they found, why others did not answer, and the lexical ceiling."""
        dense = asyncio.create_task(self._dense(request, filters, deadline))
        words = asyncio.create_task(self._lexical(request, filters))
        try:
            (recent,) = await asyncio.gather(
                self.log.recent(request, filters, self.settings.recent), return_exceptions=True
            )
            if isinstance(recent, DatabaseUnavailable):
                raise recent  # without the database nothing can answer, however long the others would try
            nearest, lexical = await asyncio.gather(dense, words, return_exceptions=True)
        finally:
            dense.cancel()
            words.cancel()
        ceiling = lexical.ceiling if isinstance(lexical, LexicalAnswer) else 0.0
        outcomes: dict[Arm, Sequence[Candidate] | BaseException] = {
            "dense": nearest,
            "lexical": lexical.candidates if isinstance(lexical, LexicalAnswer) else lexical,
            "recent": recent,
        }
        failures = {
            arm: _leaf(outcome)
            for arm, outcome in outcomes.items()
            if isinstance(outcome, BaseException)
        }
        if len(failures) == len(outcomes):
            raise failures["recent"]
        return (
            {arm: found for arm, found in outcomes.items() if not isinstance(found, BaseException)},
            failures,
            ceiling,
        )

    async def _dense(
        self, request: QueryRequest, filters: Filters, deadline: Deadline
    ) -> list[Candidate]:
        budget = Deadline.after(deadline.at_most(self.settings.embed_timeout_s))
        tenant = f"{request.microdao_id}/{request.agent_id}"
        try:
            async with asyncio.timeout(budget.remaining()):
                question = await self.embedder.embed(
                    [request.query], "query", tenant=tenant, deadline=budget
                )
        except TimeoutError:
            raise budget.exceeded() from None
        return await self.dense.search(request, filters, question, self._candidates(request))

    async def _lexical(self, request: QueryRequest, filters: Filters) -> LexicalAnswer:
        asked = grams(request.query)

        def weights(frequencies: Mapping[str, int], documents: int) -> list[tuple[str, float]]:
            known = {
                gram: asked[gram] for gram in frequencies
            }  # the index may leave out grams that nearly every chunk has
            return [(entry.gram, entry.weight) for entry in weigh(known, frequencies, documents)]

        return await self.lexical.search(
            request, filters, list(asked), weights, self._candidates(request)
        )

    def _candidates(self, request: QueryRequest) -> int:
        """An arm may return half of what it is asked for, so ask for twice `limit`."""
        return max(self.settings.candidates, 2 * request.limit)


def _leaf(error: BaseException) -> DaarionError:
    """Returns the arm's failure as a leaf; a defect in one arm must not silence the others. A cancellation goes on."""
    if isinstance(error, DaarionError):
        return error
    if not isinstance(error, Exception):
        raise error
    leaf = Internal("an arm of the search failed")
    leaf.__cause__ = error
    return leaf


def _shown_chunks(arms: Mapping[Arm, Sequence[Candidate]]) -> dict[str, int]:
    """Returns for each item the chunk to show: the one that the dense arm found, else the lexical one's."""
    chunks: dict[str, int] = {}
    for arm in ("dense", "lexical"):
        for candidate in arms.get(arm, ()):
            chunks.setdefault(candidate.id, candidate.chunk)
    return chunks


def _distinct(found: Sequence[tuple[Fused, Item]]) -> list[tuple[Fused, Item]]:
    """Leaves out what says word for word the same as a better item."""
    seen: set[str] = set()
    kept = []
    for entry, item in found:
        text = " ".join(item.content.split())
        if text not in seen:
            seen.add(text)
            kept.append((entry, item))
    return kept


def _shown(
    entry: Fused, item: Item, arms: Mapping[Arm, Sequence[Candidate]], *, explain: bool
) -> Item:
    item = item.model_copy(update={"score": round(entry.score, 6), "meta": _with_tier(item, entry)})
    if not explain:
        return item
    scores = {
        arm: round(candidate.score, 6)
        for arm, found in arms.items()
        if arm != "recent"
        for candidate in found
        if candidate.id == entry.id
    }
    return item.model_copy(update={"explain": {"ranks": dict(entry.ranks), "scores": scores}})


def _with_tier(item: Item, entry: Fused) -> dict[str, object]:
    """The newest events are the short-term tier's, wherever else they were found."""
    origin = item.meta.get(MEMORY_META)
    if "recent" not in entry.ranks or not isinstance(origin, dict) or origin.get("id") != item.id:
        return item.meta
    return {**item.meta, MEMORY_META: {**origin, "tier": "short-term"}}
