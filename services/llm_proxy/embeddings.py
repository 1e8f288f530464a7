"""Embeddings for callers of the LLM proxy: one logical model, the graph's own embedder."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass

from contracts.deadline import Deadline
from contracts.embedding import Embedder, EmbeddingBatch
from contracts.embedding_api import EmbeddingRow, EmbeddingsRequest, EmbeddingsResponse, EmbeddingsUsage
from contracts.errors import InvalidRequest, UnknownModel
from contracts.limits import CREDENTIAL, NOTHING, Estimate, Limiter, Spent, caller_of
from contracts.llm import CallMetadata
from contracts.ports import EventLog
from contracts.usage import OUTCOME_OK, UsageRecord, UsageSink
from services.llm_proxy.accounting import outcome_of
from services.llm_proxy.estimates import BYTES_PER_TOKEN

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Embeddings:
    """The use case behind `/v1/embeddings`.

    `model` is the logical name that callers give, `provider` who makes the vectors. `limiter` is looked up at each call,
    because a reload replaces it.
    """

    model: str
    provider: str
    embedder: Embedder
    limiter: Callable[[], Limiter]
    usage: UsageSink
    events: EventLog
    timeout_s: float = TIMEOUT_S

    async def create(self, request: EmbeddingsRequest, caller: CallMetadata, request_id: str) -> EmbeddingsResponse:
        """Returns the vectors.

        Raises:
            UnknownModel: another model than the graph's embedder.
            InvalidRequest: `dimensions` that the model does not have.
            RateLimited: a limit of ours is exhausted.
            Overloaded | EngineUnavailable | DeadlineExceeded: as the embedder.
        """
        self._check(request)
        reservation = await self.limiter().reserve(caller_of(caller), Estimate(tokens=_estimated_tokens(request)))
        started, outcome, tokens = time.monotonic(), OUTCOME_OK, 0
        try:
            batch = await self._embedded(request, caller)
            tokens = batch.tokens
        except BaseException as error:
            outcome = outcome_of(error)
            raise
        finally:
            reservation.settle(Spent(tokens=tokens) if tokens else NOTHING)
            self._settle(caller, request_id, outcome, tokens, started)
        return self._response(request, batch)

    def _check(self, request: EmbeddingsRequest) -> None:
        if request.model != self.model:
            raise UnknownModel(f"no embedding model `{request.model}`; there is: {self.model}")
        if request.dimensions not in {None, self.embedder.dimension}:
            raise InvalidRequest(f"dimensions: `{self.model}` gives vectors of {self.embedder.dimension} numbers; leave the field out")

    async def _embedded(self, request: EmbeddingsRequest, caller: CallMetadata) -> EmbeddingBatch:
        tenant = f"{caller.microdao_id}/{caller.agent_id}"
        return await self.embedder.embed(request.texts, request.input_type, tenant=tenant, deadline=Deadline.after(self.timeout_s))

    def _response(self, request: EmbeddingsRequest, batch: EmbeddingBatch) -> EmbeddingsResponse:
        as_base64 = request.encoding_format == "base64"
        rows = [base64.b64encode(batch.row_bytes(index)).decode("ascii") if as_base64 else batch.row(index) for index in range(len(batch))]
        return EmbeddingsResponse(
            data=[EmbeddingRow(index=index, embedding=row) for index, row in enumerate(rows)],
            model=self.model,
            usage=EmbeddingsUsage(prompt_tokens=batch.tokens, total_tokens=batch.tokens),
        )

    def _settle(self, caller: CallMetadata, request_id: str, outcome: str, tokens: int, started: float) -> None:
        latency_ms = round((time.monotonic() - started) * 1000, 3)
        who = {"request_id": request_id, "agent_id": caller.agent_id, "microdao_id": caller.microdao_id, "channel_id": caller.channel_id}
        self.events.emit("llm.embeddings", **who, model=self.model, tokens=tokens, latency_ms=latency_ms, outcome=outcome)
        self.usage.record(
            UsageRecord(
                request_id=request_id,
                agent_id=caller.agent_id,
                microdao_id=caller.microdao_id,
                channel_id=caller.channel_id,
                credential=CREDENTIAL.get(),
                logical_model=self.model,
                provider=self.provider,
                physical_model=self.model,
                prompt_tokens=tokens,
                total_tokens=tokens,
                latency_ms=latency_ms,
                outcome=outcome,
            )
        )


def _estimated_tokens(request: EmbeddingsRequest) -> int:
    return sum(-(-len(text.encode()) // BYTES_PER_TOKEN) for text in request.texts)
