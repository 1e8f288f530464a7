"""`POST /v1/embeddings` of the LLM proxy, in OpenAI's shapes; the ingress gives errors theirs."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from contracts.llm.openai_embeddings import EmbeddingsRequest, EmbeddingsResponse
from interfaces.http.base.bodies import read_model
from interfaces.http.base.errors import JsonResponse
from interfaces.http.base.identity import caller_of
from interfaces.http.base.routing import add_route
from services.llm.embeddings import Embeddings


@dataclass(frozen=True)
class EmbeddingRoutes:
    """The endpoint over its use case."""

    embeddings: Embeddings

    async def create(self, request: Request) -> Response:
        """`POST /v1/embeddings`."""
        body = await read_model(request, EmbeddingsRequest)
        answer = await self.embeddings.create(
            body,
            caller_of(request, body.metadata),
            request.state.request_id,
            credential=request.state.credential,
        )
        return JsonResponse(answer.model_dump())


def add_embedding_routes(router: APIRouter, routes: EmbeddingRoutes) -> None:
    """Adds the route."""
    add_route(
        router, "POST", "/v1/embeddings", routes.create,
        summary="Vectors of texts, for OpenAI clients",
        body=EmbeddingsRequest, response=EmbeddingsResponse, errors=(400, 401, 404, 413, 429, 502, 503, 504),
    )  # fmt: skip
