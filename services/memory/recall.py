"""Answers queries: arms search at the same time, then their candidates are fused.

An arm that fails is left out and named in the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from common.tracing import span, spanned
from contracts.deadline import Deadline
from contracts.errors import DaarionError, DatabaseUnavailable, Internal
from contracts.events import EventLog
from contracts.llm.embeddings import Embedder, EmbeddingBatch
from contracts.memory.api import Item, QueryRequest, QueryResponse
from contracts.memory.items import MEMORY_META
from contracts.memory.ports import (
    Arm,
    DenseIndex,
    Filters,
    ItemCandidate,
    ItemReader,
    LexicalAnswer,
    LexicalIndex,
    Passage,
    ScopeReader,
    SearchScope,
    ShortTermReader,
    Surroundings,
)
from contracts.memory.settings import FusionSettings, QuerySettings
from contracts.values import now_utc
from services.memory.fusion import FusedItem, fuse
from services.memory.reranking import Reranking
from services.memory.structure import CENTRES, GAP, asked_of, structured

SHARE_OF_TIME = 0.5
"""Of what is left of the query's time, for the neighbours: without them it still has an answer."""
SPARE = 10
"""Items read beyond the limit, to replace those that were deleted meanwhile."""


@dataclass(frozen=True)
class Recall:
    """The use case behind `POST /query`."""

    scopes: ScopeReader
    dense: DenseIndex
    lexical: LexicalIndex
    log: ShortTermReader
    items: ItemReader
    embedder: Embedder
    events: EventLog
    surroundings: Surroundings
    settings: QuerySettings
    fusion: FusionSettings
    reranking: Reranking
    clock: Callable[[], datetime] = now_utc

    async def query(self, request: QueryRequest, request_id: str) -> QueryResponse:
        """Returns the best items.

        Raises:
            DatabaseUnavailable: no arm can answer.
            DeadlineExceeded: the query took too long.
        """
        deadline = Deadline.after(
            min(request.timeout_s or self.settings.timeout_s, self.settings.timeout_s)
        )
        with span("memory.query"):
            try:
                async with asyncio.timeout(deadline.remaining()):
                    return await self._answer(request, deadline, request_id)
            except TimeoutError:
                raise deadline.exceeded() from None

    async def _answer(
        self, request: QueryRequest, deadline: Deadline, request_id: str
    ) -> QueryResponse:
        filters = Filters(request.channel_id, request.kinds, request.since, request.until)
        scope = asyncio.create_task(self.scopes.scope_of(request))
        question = asyncio.create_task(spanned("memory.embed", self._embedded, request, deadline))
        arms, failures, worded = await self._search_arms(request, filters, scope, question)
        now, most = self.clock(), sum(map(len, arms.values()))
        ceilings = worded.ceiling, worded.words_ceiling
        fused = fuse(arms, *ceilings, now=now, limit=most, settings=self.fusion)
        passages: Sequence[Passage] = ()
        if "dense" in arms:
            centres = [entry.id for entry in fused[:CENTRES]]
            try:
                passages = await spanned(
                    "memory.structure", self._around, filters, scope, question, centres, deadline
                )
            except DaarionError as failure:
                failures["structure"] = failure
        zone = self.settings.zone_of(request.microdao_id)
        asked = asked_of(request.query, min(now, request.until or now), zone, passages)
        fused = structured(fused, passages, asked, self.fusion)
        for arm, error in failures.items():
            defect = error.__cause__ if isinstance(error, Internal) else None
            self.events.emit(
                "memory.arm_down", request_id=request_id, arm=arm, error=error.type, exc_info=defect
            )
        # Up to two copies of a text may come from the two indexes, so twice the limit is read; any
        # number may come from recent events.
        wanted = max(request.limit, self.reranking.candidates)
        fused = fused[: 2 * wanted + self.settings.recent + SPARE]
        chunks = {passage.id: passage.chunk for passage in passages} | _shown_chunks(arms)
        shown_chunks = {entry.id: chunks.get(entry.id, 0) for entry in fused}
        items = await spanned("memory.read", self.items.read, await scope, shown_chunks)
        distinct = _distinct([(entry, items[entry.id]) for entry in fused if entry.id in items])
        shown = [
            _shown(entry, item, arms, explain=request.explain) for entry, item in distinct[:wanted]
        ]
        best, failed = await self.reranking.reordered(request, shown, deadline, request_id)
        return QueryResponse(
            items=best[: request.limit], degraded=sorted([*failures, *failed]) or None
        )

    async def _around(
        self,
        filters: Filters,
        scope: Awaitable[SearchScope],
        question: Awaitable[EmbeddingBatch],
        centres: Sequence[str],
        deadline: Deadline,
    ) -> Sequence[Passage]:
        budget = Deadline.after(SHARE_OF_TIME * deadline.remaining())
        try:
            async with asyncio.timeout(budget.remaining()):
                return await self.surroundings.around(
                    await scope, filters, centres, await question, GAP.total_seconds()
                )
        except TimeoutError:
            raise budget.exceeded() from None

    async def _search_arms(
        self,
        request: QueryRequest,
        filters: Filters,
        scope: asyncio.Task[SearchScope],
        question: asyncio.Task[EmbeddingBatch],
    ) -> tuple[dict[Arm, Sequence[ItemCandidate]], dict[str, DaarionError], LexicalAnswer]:
        """Runs all arms; returns their candidates, the failed arms' errors, the lexical answer."""
        dense = asyncio.create_task(self._dense(request, filters, scope, question))
        lexical = asyncio.create_task(self._lexical(request, filters, scope))
        try:
            recent, areas = await asyncio.gather(
                spanned("memory.recent", self.log.recent, request, filters, self.settings.recent),
                scope,
                return_exceptions=True,
            )
            for outcome in (recent, areas):
                # Nothing answers without the database: do not wait for the embedder.
                if isinstance(outcome, DatabaseUnavailable):
                    raise outcome
            nearest, alike = await asyncio.gather(dense, lexical, return_exceptions=True)
        finally:
            question.cancel()
            dense.cancel()
            lexical.cancel()
        worded = alike if isinstance(alike, LexicalAnswer) else LexicalAnswer()
        outcomes: dict[Arm, Sequence[ItemCandidate] | BaseException] = {
            "dense": nearest,
            "lexical": alike.candidates if isinstance(alike, LexicalAnswer) else alike,
            "recent": recent,
        }
        failures: dict[str, DaarionError] = {
            arm: _leaf(outcome)
            for arm, outcome in outcomes.items()
            if isinstance(outcome, BaseException)
        }
        if len(failures) == len(outcomes):
            raise failures["recent"]
        arms = {
            arm: found for arm, found in outcomes.items() if not isinstance(found, BaseException)
        }
        return arms | {"words": worded.words}, failures, worded

    async def _embedded(self, request: QueryRequest, deadline: Deadline) -> EmbeddingBatch:
        budget = Deadline.after(deadline.at_most(self.settings.embed_timeout_s))
        tenant = f"{request.microdao_id}/{request.agent_id}"
        try:
            async with asyncio.timeout(budget.remaining()):
                return await self.embedder.embed(
                    [request.query], "query", tenant=tenant, deadline=budget
                )
        except TimeoutError:
            raise budget.exceeded() from None

    async def _dense(
        self,
        request: QueryRequest,
        filters: Filters,
        scope: Awaitable[SearchScope],
        question: Awaitable[EmbeddingBatch],
    ) -> list[ItemCandidate]:
        return await spanned(
            "memory.dense",
            self.dense.search,
            await scope,
            filters,
            await question,
            self._candidates(request),
        )

    async def _lexical(
        self, request: QueryRequest, filters: Filters, scope: Awaitable[SearchScope]
    ) -> LexicalAnswer:
        return await spanned(
            "memory.lexical",
            self.lexical.search,
            await scope,
            filters,
            request.query,
            self._candidates(request),
        )

    def _candidates(self, request: QueryRequest) -> int:
        """Returns at least twice the limit: an arm may return half of what it is asked for."""
        return max(self.settings.candidates, 2 * request.limit)


def _leaf(error: BaseException) -> DaarionError:
    """Returns the arm's failure as an error of ours: a defect is one arm's failure, too.

    Raises:
        CancelledError: the arm was cancelled.
    """
    if isinstance(error, DaarionError):
        return error
    if not isinstance(error, Exception):
        raise error
    leaf = Internal("an arm of the search failed")
    leaf.__cause__ = error
    return leaf


def _shown_chunks(arms: Mapping[Arm, Sequence[ItemCandidate]]) -> dict[str, int]:
    """Returns the chunk to show by item: the dense arm's, else that of grams, of lemmas."""
    chunks: dict[str, int] = {}
    for arm in ("dense", "lexical", "words"):
        for candidate in arms.get(arm, ()):
            chunks.setdefault(candidate.id, candidate.chunk)
    return chunks


def _distinct(found: Sequence[tuple[FusedItem, Item]]) -> list[tuple[FusedItem, Item]]:
    """Leaves out items with the text of a better one, white space aside."""
    seen: set[str] = set()
    kept = []
    for entry, item in found:
        text = " ".join(item.content.split())
        if text not in seen:
            seen.add(text)
            kept.append((entry, item))
    return kept


def _shown(
    entry: FusedItem, item: Item, arms: Mapping[Arm, Sequence[ItemCandidate]], *, explain: bool
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


def _with_tier(item: Item, entry: FusedItem) -> dict[str, object]:
    """Returns `meta` with the tier short-term for the newest events, whatever arm found them."""
    origin = item.meta.get(MEMORY_META)
    if "recent" not in entry.ranks or not isinstance(origin, dict) or origin.get("id") != item.id:
        return item.meta
    return {**item.meta, MEMORY_META: {**origin, "tier": "short-term"}}
