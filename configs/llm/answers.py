"""The sections of `llm.yaml` on answers that are kept and on work in batches."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_STRICT = ConfigDict(extra="forbid", frozen=True)


class CacheSettings(BaseModel):
    """The response cache of each replica, for requests that ask for it."""

    model_config = _STRICT

    max_bytes: Annotated[int, Field(ge=1 << 16, le=1 << 34)] = 64 << 20


class IdempotencySettings(BaseModel):
    """How long the answer to an `Idempotency-Key` is kept."""

    model_config = _STRICT

    retention_h: Annotated[float, Field(gt=0, le=24 * 31, allow_inf_nan=False)] = 24.0


class BatchSettings(BaseModel):
    """Batches.

    `concurrency` bounds the requests that one replica works off at a time; calls that somebody waits for take from it, down
    to one. 0 leaves the work to other replicas. `max_failures` is how often a request may fail for a passing reason before
    it is given up; `max_waiting` bounds the unfinished requests of one microDAO; `retention_days` counts from submission.
    """

    model_config = _STRICT

    concurrency: Annotated[int, Field(ge=0, le=256)] = 4
    max_failures: Annotated[int, Field(ge=1, le=100)] = 5
    max_waiting: Annotated[int, Field(ge=1, le=10_000_000)] = 100_000
    retention_days: Annotated[float, Field(gt=0, le=365, allow_inf_nan=False)] = 30.0
