"""`POST /v1/embeddings` of the LLM proxy, in OpenAI's shapes; the ingress gives errors theirs."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from contracts.llm.openai_embeddings import EmbeddingsRequest, EmbeddingsResponse
from interfaces.http.base.errors import JsonResponse
from interfaces.http.base.identity import call_metadata_of
from interfaces.http.base.routing import Router, refusals
from services.llm.embeddings import Embeddings


@dataclass(frozen=True)
class EmbeddingRoutes:
    """The endpoint over its use case."""

    embeddings: Embeddings

    async def create(self, request: Request, body: EmbeddingsRequest) -> Response:
        """`POST /v1/embeddings`."""
        answer = await self.embeddings.create(
            body,
            call_metadata_of(request, body.metadata),
            request.state.request_id,
            credential=request.state.credential,
        )
        return JsonResponse(answer.model_dump())


def add_embedding_routes(router: Router, routes: EmbeddingRoutes) -> None:
    """Adds the route."""
    router.hot(
        "POST",
        "/v1/embeddings",
        routes.create,
        summary="Vectors of texts, for OpenAI clients",
        response_model=EmbeddingsResponse,
        responses=refusals(404, 429, 502, 504),
    )
