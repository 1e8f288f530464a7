"""HTTP routes of the LLM proxy, below `/internal/llm`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Query
from pydantic import field_validator
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from contracts.access.principals import Principal
from contracts.errors import Forbidden
from contracts.health import Health
from contracts.llm.answers import ProxyResponse, StreamEnd, StreamItem
from contracts.llm.limits import LimitsFilter, LimitsPage
from contracts.llm.listings import ModelList
from contracts.llm.requests import ProxyRequest
from contracts.llm.usage import UsageFilter, UsagePage, UsageReader
from contracts.values import now_utc
from interfaces.http.base.errors import JsonResponse, as_leaf
from interfaces.http.base.health import add_health_routes
from interfaces.http.base.routing import Router, documented_key, refusals
from interfaces.http.base.sse import EventStreamResponse, error_event, event
from services.llm.gateway import Answerer, ChatGateway, ChatStream
from services.llm.idempotency import Idempotency
from services.llm.limits.states import LimitStates

UPSTREAM_ERRORS = (502, 503, 504)


class UsageQuery(UsageFilter):
    """Query of `GET /usage`: `group_by` may be repeated or comma-separated."""

    @field_validator("group_by", mode="before")
    @classmethod
    def _split(cls, values: Iterable[str]) -> list[str]:
        return [part for value in values for part in value.split(",") if part]


@dataclass(frozen=True)
class LLMRoutes:
    """The hot endpoints, and what the others call.

    `gateway` is called at each request, because a reload replaces it.
    """

    gateway: Callable[[], ChatGateway]
    usage: UsageReader
    health: Callable[[], Health]
    idempotency: Idempotency | None = None

    async def complete(self, request: Request, body: ProxyRequest) -> Response:
        """`POST /proxy`."""
        request_id, credential = request.state.request_id, request.state.credential
        key = request.headers.get("idempotency-key", "").strip()
        if key and self.idempotency is not None:
            recorded = await self.idempotency.run(
                body, key, lambda: self.gateway().complete(body, request_id, credential=credential)
            )
            return JsonResponse(
                recorded.body,
                headers={"Idempotent-Replayed": "true"} if recorded.replayed else None,
            )
        answer = await self.gateway().complete(body, request_id, credential=credential)
        return JsonResponse(to_json(answer, exclude_none=True))

    async def stream(self, request: Request, body: ProxyRequest) -> Response:
        """`POST /stream`."""
        request_id = request.state.request_id
        opened = await self.gateway().open_stream(
            body, request_id, credential=request.state.credential
        )
        return EventStreamResponse(_events(opened, request_id), opened.close)


def llm_router(routes: LLMRoutes) -> Router:
    """Returns the router of the application."""
    router = Router()
    router.hot(
        "POST",
        "/proxy",
        routes.complete,
        summary="Ask a logical model for one whole answer",
        response_model=ProxyResponse,
        dependencies=[Depends(documented_key)],
        responses=refusals(404, 409, 429, *UPSTREAM_ERRORS),
    )
    router.hot(
        "POST",
        "/stream",
        routes.stream,
        summary="The same, token by token as Server-Sent Events",
        status_code=200,
        response_class=EventStreamResponse,
        responses=refusals(404, 429, *UPSTREAM_ERRORS),
    )

    @router.get("/models", summary="Logical models, and whether each can answer")
    async def models(request: Request) -> ModelList:
        principal: Principal = request.state.principal
        listed = routes.gateway().models().models
        return ModelList(models=[model for model in listed if model.id in principal.models])

    @router.get("/usage", summary="Tokens by agent, microDAO, model, provider and day")
    async def read_usage(query: Annotated[UsageQuery, Query()], request: Request) -> UsagePage:
        principal: Principal = request.state.principal
        if query.microdao_id is None and not principal.is_operator:
            raise Forbidden("give `microdao_id`: a sum over all of them is for operators")
        return await routes.usage.query(query.ranged(now_utc()))

    add_health_routes(router, routes.health)
    return router


def add_limit_routes(router: Router, states: LimitStates) -> None:
    """Adds the route of limits."""

    @router.get(
        "/limits",
        summary="Limits of an agent, a microDAO and the presented credential: used, left, reset",
        response_model=LimitsPage,
    )
    async def read(query: Annotated[LimitsFilter, Query()], request: Request) -> Response:
        principal: Principal = request.state.principal
        page = await states.page(query, principal.credential, principal.limits)
        # null: a limit without a window, or without a reset.
        return JsonResponse(page.model_dump(mode="json"))


async def _events(opened: ChatStream, request_id: str) -> AsyncGenerator[bytes, None]:
    """Yields one event per item; a later failure becomes an `error` event with the envelope."""
    try:
        async for item in opened.items():
            yield event(_payload(item, opened.target))
    except Exception as error:  # noqa: BLE001  # the stream must end in an error event
        yield error_event(as_leaf(error), request_id)


def _payload(item: StreamItem, target: Answerer) -> dict[str, Any]:
    if isinstance(item, StreamEnd):
        answered_by = {"provider": target.provider, "model_resolved": target.name}
        return item.model_dump(exclude_none=True) | answered_by
    named = {
        "delta": item.content,
        "reasoning_delta": item.reasoning,
        "tool_calls": item.tool_calls,
        "refusal_delta": item.refusal,
    }
    return {key: value for key, value in named.items() if value is not None}
