"""Quality of retrieval: `make bench-memory`.

Stores the gold set in a PostgreSQL of its own through the product's use cases, asks every question,
and prints recall@10 and nDCG@10 per arm and slice. The vectors are the real model's, cached below
the data directory, so only new texts are embedded. Word BM25 and the model's own vectors are there
for comparison; the product uses neither.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.access.principals import PostgresPrincipals
from backends.memory.lexicon.grams import words
from backends.memory.lexicon.scoring import weigh
from backends.postgres.migrate import migrate
from backends.postgres.pool import Database
from benchmarks.memory.bm25 import bm25, length
from benchmarks.memory.embedding_cache import EmbeddingCache
from benchmarks.memory.gold.dataset import GoldItem, GoldSet, load_gold
from benchmarks.memory.retrieval import (
    CUTOFF,
    WORD_BM25_AT_MOST,
    Quality,
    Rankings,
    complaints,
    measured,
    members_of_slices,
    table,
)
from configs.engines.config import load_engines
from configs.engines.embedder import LocalEmbedderSettings
from configs.environment import read_environment
from configs.memory import MemorySettings
from contracts.deadline import Deadline
from contracts.identity import Tenant
from contracts.llm.embeddings import EmbeddingBatch, EmbeddingKind
from contracts.memory.api import QueryRequest, StoreRequest
from contracts.memory.ports import Filters, ItemCandidate
from contracts.values import now_utc
from deployments.engines.neutral import LanguageParts
from deployments.graph.resources import WingEnvironment
from deployments.memory.wiring import MemoryRuntime
from launcher.postgres import PostgresServer
from services.access.authentication import Authentication
from services.access.directory import Directory

TENANT = Tenant(microdao_id="microdao:gold", agent_id="agent:gold")
WORDS, OWN, DENSE, LEXICAL, LEMMAS, FUSED = (
    "word BM25 (comparison)",
    "dense, own vectors (comparison)",
    "dense",
    "4-grams",
    "lemmas",
    "fused",
)
AT_ONCE = 4
WAIT_S = 60.0


class Embedded:
    """The Embedder port over cached vectors, computed as in the product."""

    def __init__(self, cache: EmbeddingCache, settings: LocalEmbedderSettings) -> None:
        self._cache = cache
        self._parts = (
            LanguageParts.measured(lambda texts: cache.vectors(texts, "passage"))
            if settings.language_neutral
            else None
        )
        self.model_version = settings.memory_space.model_version
        self.dimension = settings.dimension

    async def embed(
        self,
        texts: Sequence[str],
        kind: EmbeddingKind,
        *,
        tenant: str,  # noqa: ARG002  # the port's
        deadline: Deadline,  # noqa: ARG002
    ) -> EmbeddingBatch:  # the port
        """Returns memory's vectors."""
        rows = self.rows(texts, kind)
        return EmbeddingBatch(rows.tobytes(), self.dimension, self.model_version)

    def rows(self, texts: Sequence[str], kind: EmbeddingKind) -> NDArray[np.float32]:
        """Returns memory's vectors as rows."""
        own = self._cache.vectors(texts, kind)
        if self._parts is None:
            return own
        return np.stack(
            [self._parts.without(text, row) for text, row in zip(texts, own, strict=True)]
        )


@dataclass(frozen=True)
class Found:
    """Rankings by the arms in PostgreSQL, and by their fusion."""

    dense: Rankings
    lexical: Rankings
    lemmas: Rankings
    fused: Rankings


async def found_in_postgres(gold: GoldSet, embedder: Embedded) -> Found:
    """Stores the set, waits until it is indexed, and asks every question."""
    async with _runtime(embedder) as runtime:
        names = await _stored(runtime, gold)
        recall = runtime.cases.recall
        dense, lexical, lemmas, fused = {}, {}, {}, {}
        for query in gold.queries:
            request = QueryRequest(**TENANT.model_dump(), query=query.text, limit=CUTOFF)
            question = await embedder.embed(
                [query.text], "query", tenant="", deadline=Deadline.after(WAIT_S)
            )
            scope, most = await recall.scopes.scope_of(TENANT), recall.settings.candidates
            nearest = await recall.dense.search(scope, Filters(), question, most)
            alike = await recall.lexical.search(scope, Filters(), query.text, most)
            asked_at = query.asked_at or now_utc()
            answer = await replace(recall, clock=lambda at=asked_at: at).query(request, "bench")
            assert not answer.degraded, answer.degraded
            dense[query.id], lexical[query.id] = _ids(nearest, names), _ids(alike.candidates, names)
            lemmas[query.id] = _ids(alike.words, names)
            fused[query.id] = [names[item.id] for item in answer.items]
        return Found(dense, lexical, lemmas, fused)


@asynccontextmanager
async def _runtime(embedder: Embedded) -> AsyncIterator[MemoryRuntime]:
    settings = MemorySettings.model_validate({"knowledge_base": {"interval_s": 0}})
    with tempfile.TemporaryDirectory(prefix="daarion-bench-", ignore_cleanup_errors=True) as folder:
        async with PostgresServer(Path(folder) / "postgres", durable=False) as server:
            urls = await server.create_database("gold")
            await migrate(urls.owner)
            events = _NoEvents()
            store = PostgresPrincipals(Database(urls.service, events=events), events)
            access = Authentication(None, None, Directory(store, events))
            runtime = MemoryRuntime(
                settings,
                WingEnvironment(urls.service, Path(folder), "http://127.0.0.1:9", access),
                embedder,
                events,
            )
            await runtime.open()
            try:
                yield runtime
            finally:
                await runtime.close()


async def _stored(runtime: MemoryRuntime, gold: GoldSet) -> dict[str, str]:
    """Stores everything and waits until it is indexed; returns the gold name by the memory's id."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def store(item: GoldItem) -> tuple[str, str]:
        async with slots:
            request = StoreRequest(
                **TENANT.model_dump(),
                kind=item.kind,
                content=item.content,
                created_at=item.created_at,
                channel_id=item.channel_id,
            )
            stored = await runtime.cases.remembering.store(request, None)
        return stored.id, item.id

    names = dict(await asyncio.gather(*(store(item) for item in gold.items)))
    for name in names:
        while not await runtime.cases.records.is_indexed(TENANT, name):
            await asyncio.sleep(0.2)
    return names


class _NoEvents:
    def emit(self, event: str, **fields: Any) -> None:
        """Drops the event."""


def _ids(found: Sequence[ItemCandidate], names: dict[str, str]) -> list[str]:
    return [names[name] for name in dict.fromkeys(candidate.id for candidate in found)]


def word_rankings(gold: GoldSet) -> Rankings:
    """Ranks by BM25 over whole words."""
    texts = {item.id: dict(Counter(words(item.text))) for item in gold.items}
    average = sum(map(length, texts.values())) / len(texts)
    frequencies = Counter(word for counts in texts.values() for word in counts)
    ranked = {}
    for query in gold.queries:
        asked = weigh(Counter(words(query.text)), frequencies, len(texts))
        scores = {
            name: score
            for name, counts in texts.items()
            if (score := bm25(asked, counts, average)) > 0
        }
        ranked[query.id] = sorted(scores, key=lambda name: (-scores[name], name))
    return ranked


def own_rankings(gold: GoldSet, cache: EmbeddingCache) -> Rankings:
    """Ranks by the model's own vectors."""
    items = cache.vectors([item.text for item in gold.items], "passage")
    questions = cache.vectors([query.text for query in gold.queries], "query")
    nearest = np.argsort(-(questions @ items.T), axis=1)[:, :CUTOFF]
    return {
        query.id: [gold.items[place].id for place in row]
        for query, row in zip(gold.queries, nearest, strict=True)
    }


def report(name: str, gold: GoldSet, arms: dict[str, dict[str, Quality]]) -> list[str]:
    """Prints the table; returns unmet demands."""
    counts = {
        slice_name: len(members) for slice_name, members in members_of_slices(gold.queries).items()
    }
    print(f"\n{name}: {len(gold.items)} memories\n\n{table(arms, counts)}")
    said = complaints(arms, FUSED, (DENSE, LEXICAL, LEMMAS))
    if name == "memory" and arms[WORDS]["all"].recall > WORD_BM25_AT_MOST:
        said.append(
            f"the set is too easy: word BM25 reaches recall {arms[WORDS]['all'].recall:.3f}"
        )
    return [f"{name}: {line}" for line in said]


async def main() -> int:
    """Returns 1 for an unmet demand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "sets", nargs="*", default=["memory", "second", "conversations"], help="gold sets, by name"
    )
    chosen = parser.parse_args().sets
    environment = read_environment()
    settings = load_engines(environment).embedder
    if not isinstance(settings, LocalEmbedderSettings):
        raise SystemExit(
            "engines.yaml names an endpoint as the embedder: this benchmark needs a local model"
        )
    said: list[str] = []
    for name in chosen:
        gold, cache = load_gold(name), EmbeddingCache(settings, environment)
        cache.vectors([item.text for item in gold.items], "passage")
        cache.vectors([query.text for query in gold.queries], "query")
        found = await found_in_postgres(gold, Embedded(cache, settings))
        rankings = {
            WORDS: word_rankings(gold), OWN: own_rankings(gold, cache),
            DENSE: found.dense, LEXICAL: found.lexical, LEMMAS: found.lemmas, FUSED: found.fused,
        }  # fmt: skip
        said += report(
            name, gold, {arm: measured(gold.queries, ranked) for arm, ranked in rankings.items()}
        )
    print(
        "\n"
        + (
            "\n".join(said)
            if said
            else "as demanded: fused is nowhere under the best arm, and above each arm over all"
        )
    )
    return 1 if said else 0


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
