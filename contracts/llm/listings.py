"""`GET /internal/llm/models`: logical models, and the state of what answers for them."""

from typing import Literal

from pydantic import BaseModel

from contracts.shapes import Frozen


class EngineLoad(Frozen):
    """What the local engine did a few seconds ago; the counts are totals since its start."""

    running: int
    waiting: int
    max_running: int
    finished: int
    aborted: int
    generated_tokens: int


class CircuitInfo(Frozen):
    """What a replica knows about one target.

    `closed` is called as usual, `open` left alone, `half_open` probed by one call. `retry_after_s`
    says when it is called next; a closed circuit has it while the provider asked for a rest.
    """

    state: Literal["closed", "open", "half_open"]
    in_flight: int
    retry_after_s: float | None = None


class ModelInfo(BaseModel):
    """One row of `GET /internal/llm/models`, as the replica that answers sees it.

    `reason` says why a model is not available. Only the local engine has `load`, only models with
    `spill` have `spills_over`.
    """

    id: str
    provider: str
    name: str
    available: bool
    reason: str | None = None
    load: EngineLoad | None = None
    circuit: CircuitInfo = CircuitInfo(state="closed", in_flight=0)
    fallbacks: list[str] = []
    spills_over: bool | None = None


class ModelList(BaseModel):
    """Body of `GET /internal/llm/models`."""

    models: list[ModelInfo]
