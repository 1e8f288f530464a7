"""The typed model of `memory.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints

from contracts.memory.settings import (
    ChunkSettings,
    FusionSettings,
    QuerySettings,
    SummarySettings,
)
from contracts.shapes import Strict
from contracts.tools.api import IsolationTier

Folder = Annotated[str, StringConstraints(min_length=1, max_length=1_024, strip_whitespace=True)]


class IngestionLanes(Strict):
    """Calls of the embedder at a time per replica, and chunks in each."""

    lanes: Annotated[int, Field(ge=1, le=64)] = 2
    batch: Annotated[int, Field(ge=1, le=256)] = 16


class ShortTermSettings(Strict):
    """How long events and summaries are kept, these since they were last written; 0 for ever."""

    retention_days: Annotated[float, Field(ge=0, le=36_500, allow_inf_nan=False)] = 90
    summary_retention_days: Annotated[float, Field(ge=0, le=36_500, allow_inf_nan=False)] = 0


class VectorSettings(Strict):
    """When a tenant gets a partition of its own."""

    exact_rows: Annotated[int, Field(ge=100, le=10_000_000)] = 10_000
    max_shards: Annotated[int, Field(ge=0, le=2_000)] = 200


class KnowledgeBaseSettings(Strict):
    """Folders, relative to the data directory, and how often they are looked at.

    `max_file_bytes` bounds Markdown and text files, and the characters of the text in other files;
    `max_document_bytes` bounds these files themselves, which are converted in a sandbox of at least
    `isolation_floor`.
    """

    shared: Folder = "kb/shared"
    microdao: Folder = "kb/microdao"
    interval_s: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 60
    max_file_bytes: Annotated[int, Field(ge=1_024, le=16 << 20)] = 2 << 20
    max_document_bytes: Annotated[int, Field(ge=1_024, le=64 << 20)] = 16 << 20
    isolation_floor: IsolationTier = "landlock"

    def folders(self, data_dir: Path) -> tuple[Path, Path]:
        """Returns the shared tree and the folder of the microDAOs' trees."""
        return data_dir / Path(self.shared).expanduser(), data_dir / Path(
            self.microdao
        ).expanduser()


class MemorySettings(Strict):
    """`memory.yaml`."""

    query: QuerySettings = QuerySettings()
    fusion: FusionSettings = FusionSettings()
    chunks: ChunkSettings = ChunkSettings()
    ingestion: IngestionLanes = IngestionLanes()
    short_term: ShortTermSettings = ShortTermSettings()
    vectors: VectorSettings = VectorSettings()
    knowledge_base: KnowledgeBaseSettings = KnowledgeBaseSettings()
    summaries: SummarySettings = SummarySettings()
