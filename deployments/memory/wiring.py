"""The Memory Orchestrator over its adapters, without Ray."""

from __future__ import annotations

from backends.http.llm import LLMProxyClient
from backends.memory.areas import AreaDirectory
from backends.memory.document_files import DocumentFiles
from backends.memory.documents import DocumentTables
from backends.memory.embedding_spaces import EmbeddingSpaces
from backends.memory.items import Items
from backends.memory.lexicon.index import Lexicon
from backends.memory.lexicon.upkeep import LexiconUpkeep
from backends.memory.queue import EmbeddingQueue
from backends.memory.records import MemoryStore
from backends.memory.removal import ErasureTables
from backends.memory.shards import ShardUpkeep
from backends.memory.short_term import EventRetention, ShortTermLog, Summaries
from backends.memory.stats import Statistics
from backends.memory.surroundings import SurroundingRows
from backends.memory.vectors import VectorStore
from backends.postgres.erasing import TenantRows
from backends.postgres.leases import DatabaseJobLeases
from backends.postgres.pool import Database, PoolLimits
from configs.memory import MemorySettings
from contracts.errors import DatabaseUnavailable
from contracts.events import EventLog
from contracts.llm.embeddings import Embedder, EmbeddingSpace
from contracts.llm.reranking import Reranker
from contracts.memory.background import Upkeep
from deployments.graph.resources import Resources, WingEnvironment
from executors.conversion.converter import SandboxedConverter
from interfaces.http.memory import MemoryUseCases
from interfaces.mcp.memory import MemoryMcpServer
from services.access.quotas import Quotas
from services.memory.documents import Documents
from services.memory.erasing import Erasing
from services.memory.indexing import Indexing
from services.memory.ingestion import IngestionSettings, IngestionWorker
from services.memory.knowledge_base import KnowledgeBase
from services.memory.recall import Recall
from services.memory.remembering import Remembering
from services.memory.reranking import Reranking
from services.memory.summarizing import Summarizing
from services.memory.upkeep import UpkeepRunner

# Two pools: neither queries nor background work can take all connections from the other.
FOREGROUND = PoolLimits(min_size=2, max_size=12)
BACKGROUND = PoolLimits(min_size=1, max_size=4, statement_timeout_s=5.0)


class MemoryRuntime:
    """The parts of one process of the memory. Construct it on the event loop, then `open` it."""

    def __init__(
        self,
        settings: MemorySettings,
        environment: WingEnvironment,
        embedder: Embedder,
        events: EventLog,
        reranker: Reranker | None = None,
    ) -> None:
        """The caller opens and closes `embedder`, `events` and `reranker`."""
        self._reranker = reranker
        self._settings = settings
        self._environment = environment
        self._embedder = embedder
        self._events = events
        self._resources = Resources()
        self._llm = LLMProxyClient(environment.ingress_url, environment.access.delegations.current)
        self.database = Database(environment.database_url, events=events, limits=FOREGROUND)
        self._background = Database(
            environment.database_url, events=events, limits=BACKGROUND, name="background"
        )
        self._leases = DatabaseJobLeases(self._background)
        self._vectors_checked = False
        self._quotas = Quotas(environment.access.directory, TenantRows(self._background))
        lanes = IngestionSettings(lanes=settings.ingestion.lanes, batch=settings.ingestion.batch)
        self.worker = IngestionWorker(EmbeddingQueue(self._background), embedder, events, lanes)
        kb = settings.knowledge_base
        shared, microdaos = kb.folders(environment.data_dir)
        self._converter = SandboxedConverter(
            events, characters=kb.max_file_bytes, floor=kb.isolation_floor
        )
        self._indexing = Indexing(
            DocumentTables(self._background),
            DocumentFiles(microdaos, kb.max_file_bytes, kb.max_document_bytes),
            self._converter,
            events,
            settings.chunks,
        )
        self._knowledge = KnowledgeBase(
            self._indexing,
            self._leases,
            events,
            shared=shared,
            interval_s=kb.interval_s,
            quotas=self._quotas,
        )
        self._shards = ShardUpkeep(
            self._background,
            events,
            settings.vectors,
            query_timeout_s=settings.query.timeout_s,
        )
        self._upkeep = UpkeepRunner(self._jobs(), self._leases, events)
        self.cases = self._use_cases(settings)
        self.mcp = MemoryMcpServer(lambda: self.cases, events)

    async def open(self) -> None:
        """Opens the pools (also while PostgreSQL is unavailable) and starts the background work.

        Raises:
            ConfigurationError: the stored vectors are of another model; nothing stays open.
        """
        async with Resources() as resources:
            resources.closing(self._llm)
            resources.closing(self._converter)
            await resources.closing(self._background).open()
            await resources.closing(self.database).open()
            try:
                await self.check_vectors()
            except DatabaseUnavailable:  # the health check repeats it
                self._events.emit("memory.vectors_unchecked")
            resources.closing(self.worker).start()
            resources.closing(self._upkeep).start()
            await resources.closing(self.mcp).start()
            self._resources = resources.pop_all()

    async def check_vectors(self) -> None:
        """Checks once that the stored vectors are of the configured model.

        Raises:
            ConfigurationError: they are another model's.
            DatabaseUnavailable: they could not be read.
        """
        if self._vectors_checked:
            return
        space = EmbeddingSpace(self._embedder.model_version, self._embedder.dimension)
        spaces = EmbeddingSpaces(self._background)
        if await spaces.adopt(space):
            await spaces.catch_up(space)
            self._events.emit(
                "memory.vectors_adopted",
                model_version=space.model_version,
                dimension=space.dimension,
            )
        self._vectors_checked = True

    async def close(self) -> None:
        """Ends background work first, then the pools."""
        await self._resources.aclose()

    async def reconfigure(self, settings: MemorySettings) -> None:
        """Takes the sections query, fusion and summaries; requests under way keep the old ones."""
        self._shards.query_timeout_s = settings.query.timeout_s
        self.cases = self._use_cases(settings)

    def _use_cases(self, settings: MemorySettings) -> MemoryUseCases:
        records, items = MemoryStore(self.database), Items(self.database)
        scopes, log = AreaDirectory(self.database), ShortTermLog(self.database)
        return MemoryUseCases(
            recall=Recall(
                scopes=scopes,
                dense=VectorStore(self.database),
                lexical=Lexicon(self.database),
                log=log,
                items=items,
                embedder=self._embedder,
                events=self._events,
                surroundings=SurroundingRows(self.database),
                settings=settings.query,
                fusion=settings.fusion,
                reranking=Reranking(self._reranker, settings.query.rerank, self._events),
            ),
            remembering=Remembering(
                records, scopes, items, self.worker, self._settings.chunks, self._quotas
            ),
            summarizing=Summarizing(
                log,
                Summaries(self.database),
                self._llm,
                settings.summaries,
            ),
            records=records,
            statistics=Statistics(self.database),
            erasing=Erasing(
                TenantRows(self._background), ErasureTables(self._background), self._knowledge
            ),
            knowledge=self._knowledge,
            documents=Documents(self._indexing, self._quotas),
        )

    def _jobs(self) -> list[Upkeep]:
        settings = self._settings
        jobs: list[Upkeep] = [
            LexiconUpkeep(self._background, self._events),
            self._shards,
            EventRetention(
                self._background,
                settings.short_term.retention_days,
                settings.short_term.summary_retention_days,
            ),
        ]
        return [*jobs, self._knowledge] if settings.knowledge_base.interval_s else jobs
