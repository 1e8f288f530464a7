"""Speed and recall of memory search in a table of 200,000 rows: `make bench-memory-scale`.

Fills a PostgreSQL of its own with tenants of 1,000 to 100,000 rows and many small ones. Prints per
tenant: recall@10 of the dense arm against an exact search, and median milliseconds of the dense
arm, the lexical arm and a whole fused query without embedding. Texts and vectors are synthetic but
shaped like real ones: words by Zipf's law, vectors of few dimensions around a common mean.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psycopg

from backends.memory.areas import AreaDirectory, background_transaction
from backends.memory.items import Items
from backends.memory.lexicon.index import Lexicon
from backends.memory.lexicon.merging import merge
from backends.memory.lexicon.postings import pack_terms
from backends.memory.lexicon.terms import terms
from backends.memory.lexicon.upkeep import LexiconUpkeep
from backends.memory.shards import MARGIN_S, ShardUpkeep
from backends.memory.short_term import ShortTermLog
from backends.memory.surroundings import SurroundingRows
from backends.memory.vectors import VectorStore
from backends.postgres.migrate import migrate
from backends.postgres.pool import Database
from configs.memory import VectorSettings
from contracts.identity import Tenant
from contracts.llm.embeddings import EmbeddingBatch, EmbeddingKind
from contracts.memory.api import QueryRequest
from contracts.memory.ports import Area, Filters
from contracts.memory.settings import QuerySettings, RerankSettings
from launcher.postgres import PostgresServer
from services.memory.fusion import DEFAULT
from services.memory.recall import Recall
from services.memory.reranking import Reranking

DIMENSION = 384
VERSION = "synthetic-1"
LATENT = 48
SYLLABLES = [c + v for c in "бвгджзклмнпрстфхцчш" for v in "аеиоуіяю"]
WARM_UP = 25

BUDGETS = {1_000: (1.0, 5.0, 20.0), 100_000: (0.95, 20.0, 100.0)}
"""Rows of a tenant: least recall, most milliseconds of the dense arm, and of a fused query."""


@dataclass(frozen=True)
class Row:
    """Measurements of one size of tenant; times are medians in milliseconds."""

    rows: int
    recall: float
    dense_ms: float
    lexical_ms: float
    fused_ms: float

    def within_budget(self) -> bool:
        if self.rows not in BUDGETS:
            return True
        recall, dense, fused = BUDGETS[self.rows]
        return self.recall >= recall and self.dense_ms <= dense and self.fused_ms <= fused


class Texts:
    """Sentences of made-up Ukrainian-like words."""

    def __init__(self, random: np.random.Generator, words: int = 30_000) -> None:
        lengths = random.integers(1, 5, words)
        self._words = ["".join(random.choice(SYLLABLES, length)) for length in lengths]
        weights = 1 / np.arange(1, words + 1) ** 1.05
        self._weights = weights / weights.sum()
        self._random = random

    def make(self, count: int) -> list[str]:
        sizes = self._random.integers(8, 35, count)
        drawn = self._random.choice(self._words, int(sizes.sum()), p=self._weights)
        ends = np.cumsum(sizes)
        return [" ".join(drawn[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


class Vectors:
    """Unit vectors of few intrinsic dimensions around a common mean."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random
        self._basis = random.standard_normal((LATENT, DIMENSION)) / np.sqrt(DIMENSION)
        self._mean = random.standard_normal(DIMENSION) / np.sqrt(DIMENSION)

    def make(self, count: int) -> np.ndarray:
        latent = self._random.standard_normal((count, LATENT)) / np.sqrt(LATENT)
        noise = self._random.standard_normal((count, DIMENSION)) / np.sqrt(DIMENSION) * 0.1
        raw = 1.7 * self._mean + latent @ self._basis * np.sqrt(LATENT) / 3 + noise
        return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float16)


class KnownVectors:
    """An embedder that has the answer already, so that only the search is measured."""

    model_version = VERSION
    dimension = DIMENSION

    def __init__(self) -> None:
        self.next = b""

    async def embed(
        self, _texts: Sequence[str], _kind: EmbeddingKind, **_options: object
    ) -> EmbeddingBatch:
        return EmbeddingBatch(self.next, DIMENSION, VERSION)


class NoEvents:
    def emit(self, event: str, **fields: Any) -> None:
        pass


def tenant_of(rows: int, number: int = 0) -> Tenant:
    return Tenant(microdao_id=f"microdao:{rows}-{number}", agent_id="agent:bench")


async def fill(url: str, tenant: Tenant, first: int, texts: list[str], vectors: np.ndarray) -> None:
    """Writes a tenant's rows as a store and the ingestion would leave them."""
    now = datetime.now(UTC)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        columns = (
            "chunk_no, model_version, id, microdao_id, agent_id, channel_id, kind, created_at, "
            "embedding, content, meta"
        )
        async with connection.cursor().copy(f"COPY agent_memories ({columns}) FROM STDIN") as copy:
            for number, (text, vector) in enumerate(zip(texts, vectors, strict=True), first):
                halves = orjson.dumps([float(value) for value in vector]).decode()
                at = now - timedelta(minutes=number - first)
                await copy.write_row(
                    (
                        number,
                        VERSION,
                        f"mem-{number}",
                        tenant.microdao_id,
                        tenant.agent_id,
                        f"channel:{number % 20}",
                        "conversation",
                        at,
                        halves,
                        text,
                        "{}",
                    )
                )
        async with connection.cursor().copy(
            "COPY memory_terms (microdao_id, agent_id, chunk_no, terms) "
            "FROM STDIN WITH (FORMAT BINARY)"
        ) as copy:
            copy.set_types(["text", "text", "int8", "bytea"])
            for number, text in enumerate(texts, first):
                await copy.write_row(
                    (tenant.microdao_id, tenant.agent_id, number, pack_terms(number, terms(text)))
                )
        async with connection.cursor().copy(
            "COPY memory_events (microdao_id, agent_id, channel_id, memory_id, kind, content, "
            "created_at) FROM STDIN"
        ) as copy:
            for number, text in enumerate(texts, first):
                at = now - timedelta(minutes=number - first)
                await copy.write_row(
                    (
                        tenant.microdao_id,
                        tenant.agent_id,
                        f"channel:{number % 20}",
                        f"mem-{number}",
                        "conversation",
                        orjson.dumps({"text": text}).decode(),
                        at,
                    )
                )
        await connection.execute(
            "INSERT INTO memory_areas (microdao_id, agent_id, unsharded, unmerged) "
            "VALUES (%s, %s, %s, %s)",
            (tenant.microdao_id, tenant.agent_id, len(texts), len(texts)),
        )


async def timed(call: Awaitable[Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    answer = await call
    return (time.perf_counter() - begin) * 1000, answer


class Bench:
    def __init__(self, url: str, superuser_url: str, questions: int, seed: int) -> None:
        self._superuser_url = superuser_url
        self._questions = questions
        random = np.random.default_rng(seed)
        self._random, self._texts, self._vectors = random, Texts(random), Vectors(random)
        self.database = Database(url, events=NoEvents())
        self._dense = VectorStore(self.database)
        self._lexical = Lexicon(self.database)
        self._embedder = KnownVectors()
        self._scopes = AreaDirectory(self.database)
        self._recall = Recall(
            scopes=self._scopes, dense=self._dense, lexical=self._lexical,
            log=ShortTermLog(self.database), items=Items(self.database),
            embedder=self._embedder, events=NoEvents(), surroundings=SurroundingRows(self.database),
            settings=QuerySettings(), fusion=DEFAULT,
            reranking=Reranking(None, RerankSettings(), NoEvents()),
        )  # fmt: skip
        self._next = 1
        self.kept: dict[int, tuple[int, list[str], np.ndarray]] = {}

    async def add(self, rows: int, number: int = 0) -> None:
        texts, vectors = self._texts.make(rows), self._vectors.make(rows)
        await fill(self._superuser_url, tenant_of(rows, number), self._next, texts, vectors)
        if number == 0:
            self.kept[rows] = (self._next, texts, vectors)
        self._next += rows

    async def upkeep(self) -> None:
        """Runs the product's background work until nothing is due."""
        lexicon = LexiconUpkeep(self.database, NoEvents())
        shards = ShardUpkeep(self.database, NoEvents(), VectorSettings(), query_timeout_s=-MARGIN_S)
        async with background_transaction(self.database, timeout_s=30) as connection:
            rows = await (
                await connection.execute("SELECT microdao_id, agent_id FROM memory_areas")
            ).fetchall()
        begin = time.perf_counter()
        for row in rows:
            await lexicon.locked(Area(row["microdao_id"], row["agent_id"]), merge)
        print(f"lexicon merged in {time.perf_counter() - begin:.0f} s", flush=True)
        begin = time.perf_counter()
        await shards.run()  # announces
        await shards.run()  # moves and indexes; no query runs meanwhile
        print(f"shards filled and indexed in {time.perf_counter() - begin:.0f} s", flush=True)
        async with await psycopg.AsyncConnection.connect(
            self._superuser_url, autocommit=True
        ) as connection:
            await connection.execute("VACUUM ANALYZE")

    async def measure(self, rows: int) -> Row:
        """Asks as many questions as configured, after some that only warm up caches."""
        asked = [await self._ask(rows) for _ in range(WARM_UP + self._questions)][WARM_UP:]
        recall, *times = zip(*asked, strict=True)
        dense, lexical, fused = (statistics.median(values) for values in times)
        return Row(rows, statistics.fmean(recall), dense, lexical, fused)

    async def _ask(self, rows: int) -> tuple[float, float, float, float]:
        """Returns recall and three durations of one question."""
        tenant, (first, texts, vectors) = tenant_of(rows), self.kept[rows]
        vector = self._vectors.make(1)[0].astype("<f4")  # halves, as they are stored
        text = " ".join(self._random.choice(texts[int(self._random.integers(rows))].split(), 6))
        self._embedder.next = vector.tobytes()
        batch = EmbeddingBatch(vector.tobytes(), DIMENSION, VERSION)
        scope = await self._scopes.scope_of(tenant)
        dense, found = await timed(self._dense.search(scope, Filters(), batch, 100))
        lexical, _ = await timed(self._lexical.search(scope, Filters(), text, 100))
        fused, answer = await timed(
            self._recall.query(QueryRequest(**tenant.model_dump(), query=text, limit=10), "bench")
        )
        assert answer.degraded is None
        nearest = np.argsort(-(vectors.astype("<f4") @ vector))[:10]
        truth = {f"mem-{first + int(index)}" for index in nearest}
        return len(truth & {candidate.id for candidate in found[:10]}) / 10, dense, lexical, fused


async def run(total: int, questions: int, seed: int) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="daarion-bench-") as folder:
        async with PostgresServer(Path(folder), durable=False) as server:
            await migrate(server.urls.owner)
            bench = Bench(server.urls.service, server.urls.superuser, questions, seed)
            await bench.database.open()
            sizes = [size for size in (100_000, 20_000, 10_000, 5_000, 1_000) if size <= total // 2]
            begin = time.perf_counter()
            for size in sizes:
                await bench.add(size)
            for number in range(1, (total - sum(sizes)) // 1_000 + 1):
                await bench.add(1_000, number)
            print(f"{total} rows loaded in {time.perf_counter() - begin:.0f} s", flush=True)
            await bench.upkeep()
            rows = [await bench.measure(size) for size in sorted(sizes)]
            await bench.database.close()
            return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    rows = asyncio.run(run(arguments.rows, arguments.questions, arguments.seed))
    print(
        f"{'rows of tenant':>14} {'recall@10':>10} "
        f"{'dense ms':>9} {'lexical ms':>11} {'fused ms':>9}"
    )
    for row in rows:
        verdict = "" if row.within_budget() else "  OVER BUDGET"
        print(
            f"{row.rows:>14} {row.recall:>10.3f} "
            f"{row.dense_ms:>9.1f} {row.lexical_ms:>11.1f} {row.fused_ms:>9.1f}{verdict}"
        )
    first, last = rows[0], rows[-1]
    print(
        f"growth {first.rows} -> {last.rows}: dense x{last.dense_ms / first.dense_ms:.1f}, "
        f"fused x{last.fused_ms / first.fused_ms:.1f}"
    )
    return 0 if all(row.within_budget() for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
