"""Embeddings for callers of the LLM proxy: one logical model, the graph's embedder."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from contracts.deadline import Deadline
from contracts.errors import InvalidRequest, UnknownModel
from contracts.events import EventLog
from contracts.identity import new_id
from contracts.llm.answers import TokenUsage
from contracts.llm.embeddings import EmbeddingBatch, TokenEmbedder
from contracts.llm.limits import (
    NANO_PER_USD,
    NOTHING,
    Estimate,
    Limiter,
    Spent,
)
from contracts.llm.openai_embeddings import (
    EmbeddingRow,
    EmbeddingsRequest,
    EmbeddingsResponse,
    EmbeddingsUsage,
)
from contracts.llm.ports import Prices
from contracts.llm.requests import CallMetadata
from contracts.llm.routing import Target, Timeouts
from contracts.llm.usage import OUTCOME_LOST, OUTCOME_OK, UsageRecord, UsageSink, tokens_of
from contracts.values import now_utc
from services.llm.accounting import PROVIDER_WORKED, caller_of, outcome_of
from services.llm.call_spans import CallSpans
from services.llm.estimates import BYTES_PER_TOKEN

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Embeddings:
    """The use case behind `/v1/embeddings`.

    `model` is the logical name that callers give, `target` the provider and physical model that
    make the vectors. `prices` is looked up at each call, because a reload replaces it.
    """

    model: str
    target: Target
    embedder: TokenEmbedder
    limiter: Limiter
    usage: UsageSink
    events: EventLog
    prices: Callable[[], Prices]
    timeout_s: float = TIMEOUT_S

    async def create(
        self,
        request: EmbeddingsRequest,
        metadata: CallMetadata,
        request_id: str,
        *,
        credential: str,
    ) -> EmbeddingsResponse:
        """Returns the vectors.

        Raises:
            UnknownModel: another model than the graph's embedder.
            InvalidRequest: `dimensions` that the model does not have, tokens that are not its own.
            RateLimited: a limit of ours is exhausted.
            Overloaded: the call's usage cannot be recorded.
            Overloaded | EngineUnavailable | DeadlineExceeded: as the embedder.
        """
        self._check(request)
        estimated = _usage(_estimated_tokens(request), estimated=True)
        expected = Estimate(tokens=estimated.total_tokens, nano_usd=_nano(self._cost(estimated)))
        reservation = await self.limiter.reserve(caller_of(metadata, credential), expected)
        spans = CallSpans("embeddings", self.model, metadata)
        call = self._call(metadata, request_id, credential) | {"trace_id": spans.trace_id}
        started, outcome, used, ticket = time.monotonic(), OUTCOME_OK, _usage(0), None
        try:
            lost = UsageRecord(**call, outcome=OUTCOME_LOST, latency_ms=0.0, **tokens_of(estimated))
            ticket = self.usage.begin(lost)
            with spans.within():
                batch = await self._embedded(request, metadata)
            used = _usage(batch.tokens) if batch.tokens else estimated
        except BaseException as error:
            outcome = outcome_of(error)
            if outcome in PROVIDER_WORKED:
                used = estimated  # vectors were made, although the caller received none
            raise
        finally:
            cost = self._cost(used)
            reservation.settle(
                Spent(tokens=used.total_tokens, nano_usd=_nano(cost))
                if used.total_tokens
                else NOTHING
            )
            latency_ms = round((time.monotonic() - started) * 1000, 3)
            ended = UsageRecord(
                **call, outcome=outcome, latency_ms=latency_ms, cost_usd=cost, **tokens_of(used)
            )
            spans.ended(ended)
            self._emit(ended)
            if ticket is not None:
                self.usage.record(ended, ticket)
        return self._response(request, batch)

    def _cost(self, usage: TokenUsage) -> Decimal | None:
        return self.prices().cost(self.target, usage) if usage.total_tokens else None

    def _check(self, request: EmbeddingsRequest) -> None:
        if request.model != self.model:
            raise UnknownModel(f"no embedding model `{request.model}`; there is: {self.model}")
        if request.dimensions not in {None, self.embedder.dimension}:
            raise InvalidRequest(
                f"dimensions: `{self.model}` gives vectors of {self.embedder.dimension} numbers; "
                "leave the field out"
            )

    async def _embedded(self, request: EmbeddingsRequest, metadata: CallMetadata) -> EmbeddingBatch:
        tenant = f"{metadata.microdao_id}/{metadata.agent_id}"
        kind = request.input_type or "passage"
        return await self.embedder.embed(
            request.inputs, kind, tenant=tenant, deadline=Deadline.after(self.timeout_s)
        )

    def _response(self, request: EmbeddingsRequest, batch: EmbeddingBatch) -> EmbeddingsResponse:
        as_base64 = request.encoding_format == "base64"
        rows = [
            base64.b64encode(batch.row_bytes(index)).decode("ascii")
            if as_base64
            else batch.row(index)
            for index in range(len(batch))
        ]
        return EmbeddingsResponse(
            data=[EmbeddingRow(index=index, embedding=row) for index, row in enumerate(rows)],
            model=self.model,
            usage=EmbeddingsUsage(prompt_tokens=batch.tokens, total_tokens=batch.tokens),
        )

    def _call(self, metadata: CallMetadata, request_id: str, credential: str) -> dict[str, Any]:
        """Returns the fields of the call's record that are known when it begins."""
        return {
            "id": new_id(),
            "occurred_at": now_utc(),
            "request_id": request_id,
            "agent_id": metadata.agent_id,
            "microdao_id": metadata.microdao_id,
            "channel_id": metadata.channel_id,
            "credential": credential,
            "logical_model": self.model,
            "provider": self.target.provider,
            "physical_model": self.target.name,
        }

    def _emit(self, ended: UsageRecord) -> None:
        self.events.emit(
            "llm.embeddings",
            request_id=ended.request_id,
            agent_id=ended.agent_id,
            microdao_id=ended.microdao_id,
            channel_id=ended.channel_id,
            model=self.model,
            tokens=ended.total_tokens,
            cost_usd=None if ended.cost_usd is None else float(ended.cost_usd),
            latency_ms=ended.latency_ms,
            outcome=ended.outcome,
        )


def _estimated_tokens(request: EmbeddingsRequest) -> int:
    return sum(
        -(-len(given.encode()) // BYTES_PER_TOKEN) if isinstance(given, str) else len(given)
        for given in request.inputs
    )


def embedding_target(provider: str, name: str) -> Target:
    """Returns the target by which vectors are accounted and priced."""
    return Target(provider, name, Timeouts(TIMEOUT_S, TIMEOUT_S, TIMEOUT_S, TIMEOUT_S))


def _usage(tokens: int, *, estimated: bool | None = None) -> TokenUsage:
    return TokenUsage(prompt_tokens=tokens, total_tokens=tokens, estimated=estimated)


def _nano(cost: Decimal | None) -> int:
    return 0 if cost is None else int(cost * NANO_PER_USD)
