"""Sections of `memory.yaml` that use cases take as they are."""

from __future__ import annotations

from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import Field, StringConstraints, model_validator

from contracts.identity import Identifier
from contracts.llm.embeddings import MAX_TEXTS_PER_CALL
from contracts.shapes import Strict

Seconds = Annotated[float, Field(gt=0, le=3_600, allow_inf_nan=False)]


class RerankSettings(Strict):
    """How a cross-encoder's scores join those of fusion, where `engines.yaml` has a `reranker`.

    It reads the best `candidates`, 0 leaves it out. `weight` is the part of the score that is its
    own. Scores that take longer than `timeout_s` are left out.
    """

    candidates: Annotated[int, Field(ge=0, le=MAX_TEXTS_PER_CALL)] = 30
    weight: Annotated[float, Field(gt=0, le=1)] = 0.7
    timeout_s: Seconds = 1


class QuerySettings(Strict):
    """How a question is answered: `candidates` per arm, `recent` newest events as short-term.

    `time_zone` says when "yesterday" in a question begins, `time_zones` by microdao_id.
    """

    candidates: Annotated[int, Field(ge=10, le=1_000)] = 100
    recent: Annotated[int, Field(ge=0, le=200)] = 20
    timeout_s: Seconds = 8
    embed_timeout_s: Seconds = 3
    time_zone: ZoneInfo = ZoneInfo("Europe/Kyiv")
    time_zones: dict[Identifier, ZoneInfo] = Field(default_factory=dict, max_length=100_000)
    rerank: RerankSettings = RerankSettings()

    def zone_of(self, microdao_id: str) -> ZoneInfo:
        return self.time_zones.get(microdao_id, self.time_zone)


class FusionSettings(Strict):
    """How `services/memory/fusion.py` scores; null is the measured value, as if left out.

    `unrelated` is the cosine of unrelated texts in the embedder's space; `lexical_weight` the
    highest score by parts of words alone, `word_weight` by their lemmas alone, 0 leaves them out;
    `recency_weight` the part of the score that age takes away in the end, half of it within
    `half_life_days`.
    """

    unrelated: Annotated[float, Field(ge=-1, lt=1)] = 0.1
    lexical_weight: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = 0.4
    word_weight: Annotated[float, Field(ge=0, le=1)] = 0.3
    recency_weight: Annotated[float, Field(ge=0, le=1)] = 0.02
    half_life_days: Annotated[float, Field(gt=0, le=36_500)] = 30.0

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value is not None}


class ChunkSettings(Strict):
    """Bounds in characters. A chunk repeats `overlap` characters of the chunk before."""

    most: Annotated[int, Field(ge=100, le=20_000)] = 900
    overlap: Annotated[int, Field(ge=0, le=5_000)] = 120

    @model_validator(mode="after")
    def _overlap_is_small(self) -> ChunkSettings:
        if 2 * self.overlap > self.most:
            raise ValueError("overlap: at most half of `most`")
        return self


class SummarySettings(Strict):
    """The model, and the bounds of one summary.

    Characters of the events in one call and of one event, sentences and tokens of an answer, and
    seconds for the whole.
    """

    model: Annotated[str, StringConstraints(min_length=1, max_length=256)] = "dagi-local-8b"
    prompt_chars: Annotated[int, Field(ge=500, le=1_000_000)] = 3_000
    event_chars: Annotated[int, Field(ge=50, le=100_000)] = 800
    sentences: Annotated[int, Field(ge=1, le=100)] = 8
    max_tokens: Annotated[int, Field(ge=16, le=100_000)] = 400
    timeout_s: Seconds = 120
