"""The routes below `/v1` of the LLM proxy, in OpenAI's shapes: chat, models, embeddings, errors."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from contracts.access.principals import Principal
from contracts.errors import DaarionError, Forbidden, RateLimited, Unauthorized, UnknownModel
from contracts.llm.answers import StreamEnd
from contracts.llm.openai_chat import (
    ChatCompletion,
    ChatCompletionRequest,
    ChunkWriter,
    ModelCard,
    ModelCards,
    cards_of,
    completion_of,
)
from contracts.llm.openai_embeddings import EmbeddingsRequest, EmbeddingsResponse
from interfaces.http.base.errors import JsonResponse, as_leaf, retry_headers
from interfaces.http.base.identity import call_metadata_of
from interfaces.http.base.routing import PathId, Router, refusals
from interfaces.http.base.sse import EventStreamResponse, event
from services.llm.embeddings import Embeddings
from services.llm.gateway import ChatGateway, ChatStream

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class OpenAIRoutes:
    """The endpoints. `gateway` is looked up at each request, because a reload replaces it.

    `embedding_model` is the name of the embedding model and who owns it.
    """

    gateway: Callable[[], ChatGateway]
    embedding_model: tuple[str, str] | None = None

    async def chat(self, request: Request, body: ChatCompletionRequest) -> Response:
        """`POST /v1/chat/completions`."""
        asked = body.to_proxy(call_metadata_of(request, body.metadata))
        request_id: str = request.state.request_id
        credential: str = request.state.credential
        if body.stream:
            opened = await self.gateway().open_stream(asked, request_id, credential=credential)
            writer = ChunkWriter(request_id, opened.target.name, include_usage=body.include_usage)
            return EventStreamResponse(_chunks(opened, writer, request_id), opened.close)
        answer = await self.gateway().complete(asked, request_id, credential=credential)
        return JsonResponse(completion_of(answer, request_id))

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`."""
        return JsonResponse(self.cards(request.state.principal).model_dump())

    def cards(self, principal: Principal) -> ModelCards:
        """Returns the card of each model that the caller may ask."""
        cards = cards_of(self.gateway().models().models, self.embedding_model)
        return ModelCards(data=[card for card in cards.data if card.id in principal.models])


async def _chunks(
    opened: ChatStream, writer: ChunkWriter, request_id: str
) -> AsyncGenerator[bytes, None]:
    """Yields one event per chunk, then `[DONE]`, or an event with the error."""
    yield event(writer.first())
    try:
        async for item in opened.items():
            if isinstance(item, StreamEnd):
                for chunk in writer.last(item, opened.target.name, opened.target.provider):
                    yield event(chunk)
            else:
                yield event(writer.delta(item))
    except Exception as error:  # noqa: BLE001  # clients read the failure from the stream
        yield event(openai_error_body(as_leaf(error), request_id))
        return
    yield DONE


def add_openai_routes(router: Router, routes: OpenAIRoutes) -> None:
    """Adds the routes."""
    router.hot(
        "POST",
        "/v1/chat/completions",
        routes.chat,
        summary="Chat completions for OpenAI clients, whole or streamed",
        response_model=ChatCompletion,
        responses=refusals(404, 429, 502, 504),
    )
    router.hot(
        "GET",
        "/v1/models",
        routes.models,
        summary="Logical models, for OpenAI clients",
        response_model=ModelCards,
    )

    @router.get(
        "/v1/models/{model_id:path}",
        summary="One logical model, for OpenAI clients",
        responses=refusals(404),
    )
    async def model(model_id: PathId, request: Request) -> ModelCard:
        cards = routes.cards(request.state.principal).data
        for card in cards:
            if card.id == model_id:
                return card
        raise UnknownModel(f"no such model; there are: {', '.join(card.id for card in cards)}")


def add_embedding_routes(router: Router, embeddings: Embeddings) -> None:
    """Adds the route of vectors."""

    async def create(request: Request, body: EmbeddingsRequest) -> Response:
        answer = await embeddings.create(
            body,
            call_metadata_of(request, body.metadata),
            request.state.request_id,
            credential=request.state.credential,
        )
        return JsonResponse(answer.model_dump())

    router.hot(
        "POST",
        "/v1/embeddings",
        create,
        summary="Vectors of texts, for OpenAI clients",
        response_model=EmbeddingsResponse,
        responses=refusals(404, 429, 502, 504),
    )


def openai_error_response(error: DaarionError, request_id: str) -> JsonResponse:
    """Returns the body with the leaf's status; headers tell OpenAI's clients whether to retry."""
    headers = {"x-should-retry": str(error.retryable).lower(), **retry_headers(error)}
    return JsonResponse(
        openai_error_body(error, request_id), status_code=error.status, headers=headers
    )


def openai_error_body(error: DaarionError, request_id: str) -> dict[str, Any]:
    """Returns `{"error": {"message", "type", "param", "code"}}`; `code` is our own type.

    `request_id`, `retryable` and `details` stand beside them, as in the envelope.
    """
    body: dict[str, Any] = {
        "message": error.message,
        "type": _type(error),
        "param": _param(error),
        "code": error.type,
        "retryable": error.retryable,
        "request_id": request_id,
    }
    if error.details:
        body["details"] = error.details
    return {"error": body}


def _param(error: DaarionError) -> str | None:
    """Returns the first invalid field, if any."""
    mistakes = (error.details or {}).get("mistakes")
    return mistakes[0]["field"] or None if mistakes else None


def _type(error: DaarionError) -> str:
    if isinstance(error, Unauthorized | Forbidden):
        return "authentication_error"
    if isinstance(error, RateLimited):
        return "rate_limit_error"
    return "invalid_request_error" if error.status < 500 else "server_error"


OPENAI_ERRORS = {"/v1": openai_error_response}
"""For the ingress: everything below `/v1` answers its errors in this shape."""
