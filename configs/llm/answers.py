"""The sections `cache`, `idempotency` and `batch` of `llm.yaml`."""

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

    `concurrency` bounds the running batch requests per replica, less its calls with a waiting
    caller, but at least one; 0 leaves batches to other replicas. After `max_failures` temporary
    failures a request is given up. `max_waiting` bounds the unfinished requests of one microDAO;
    `retention_days` counts from submission.
    """

    model_config = _STRICT

    concurrency: Annotated[int, Field(ge=0, le=256)] = 4
    max_failures: Annotated[int, Field(ge=1, le=100)] = 5
    max_waiting: Annotated[int, Field(ge=1, le=10_000_000)] = 100_000
    retention_days: Annotated[float, Field(gt=0, le=365, allow_inf_nan=False)] = 30.0
