"""Routes of batches, below `/internal/llm/batch`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from contracts.errors import InvalidRequest
from contracts.identity import Identifier
from contracts.llm.batches import (
    MAX_BATCH_BYTES,
    MAX_REQUESTS,
    Batch,
    BatchFilter,
    BatchPage,
    BatchRequest,
    ItemResult,
    NewBatch,
)
from interfaces.http.base.bodies import read_json
from interfaces.http.base.errors import JsonResponse, invalid_body
from interfaces.http.base.identity import microdao_of
from interfaces.http.base.places import Place, Places
from interfaces.http.base.routing import add_route
from services.llm.batches import Batches

NDJSON = "application/x-ndjson"
MAX_SUBMISSIONS = 4
"""Batches that one replica checks and stores at a time, each in a few hundred megabytes of memory;
as many bodies, of at most `MAX_BATCH_BYTES`, may be arriving."""


class _Identity(BaseModel):
    """Query string of a route that names one tenant; the header `X-Microdao-Id` does the same."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    microdao_id: Identifier | None = None


@dataclass
class BatchRoutes:
    """The endpoints. `batches` is looked up at each request."""

    batches: Callable[[], Batches]
    _places: Places = field(default_factory=lambda: Places(MAX_SUBMISSIONS), init=False)

    async def submit(self, request: Request) -> Response:
        """`POST /batch`."""
        place = Place(self._places, request.receive, request._send)  # noqa: SLF001  # this place only receives
        try:
            await place.open("POST")
            raw = await read_json(Request(request.scope, place.receive), MAX_BATCH_BYTES)
            # Off the event loop: thousands of requests take a while to check.
            requests = await asyncio.to_thread(_requests, raw)
            batch = await self.batches().submit(requests, credential=request.state.credential)
        finally:
            place.leave()
        return _json(batch, status=202)

    async def page(self, request: Request) -> Response:
        """`GET /batch`."""
        query = BatchFilter.model_validate(dict(request.query_params))
        return _json(await self.batches().page(microdao_of(request), query.limit, query.cursor))

    async def get(self, request: Request) -> Response:
        """`GET /batch/{batch_id}`."""
        return _json(await self.batches().get(_tenant(request), request.path_params["batch_id"]))

    async def cancel(self, request: Request) -> Response:
        """`DELETE /batch/{batch_id}`."""
        return _json(await self.batches().cancel(_tenant(request), request.path_params["batch_id"]))

    async def items(self, request: Request) -> Response:
        """`GET /batch/{batch_id}/items`: one request a line, in the order of submission."""
        results = await self.batches().results(_tenant(request), request.path_params["batch_id"])
        return StreamingResponse(_lines(results), media_type=NDJSON)


def add_batch_routes(router: APIRouter, routes: BatchRoutes) -> None:
    """Adds the routes."""
    add_route(
        router, "POST", "/batch", routes.submit,
        summary="Submit many requests to be worked off at low priority",
        body=NewBatch, response=Batch, status=202, errors=(400, 401, 413, 429, 503),
    )  # fmt: skip
    add_route(
        router, "GET", "/batch", routes.page,
        summary="A microDAO's batches, newest first", query=BatchFilter, response=BatchPage, errors=(400, 401, 503),
    )  # fmt: skip
    add_route(
        router, "GET", "/batch/{batch_id}", routes.get,
        summary="How far a batch is", query=_Identity, response=Batch, errors=(400, 401, 404, 503),
    )  # fmt: skip
    add_route(
        router, "GET", "/batch/{batch_id}/items", routes.items,
        summary="Every request of a batch and its result, as NDJSON", query=_Identity, media_type=NDJSON, errors=(400, 401, 404, 503),
    )  # fmt: skip
    add_route(
        router, "DELETE", "/batch/{batch_id}", routes.cancel,
        summary="Cancel a batch; what has a result keeps it", query=_Identity, response=Batch, errors=(400, 401, 404, 503),
    )  # fmt: skip


def _tenant(request: Request) -> str:
    _Identity.model_validate(dict(request.query_params))
    return microdao_of(request)


def _requests(raw: bytes) -> list[BatchRequest]:
    """Returns the checked requests. Raises InvalidRequest that names the first wrong one."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise InvalidRequest("the body is not valid JSON") from None
    if not isinstance(body, dict) or not isinstance(body.get("requests"), list):
        raise InvalidRequest('send {"requests": […]}')
    unknown = sorted(set(body) - {"requests"})
    if unknown:
        raise InvalidRequest(f"{unknown[0][:100]}: unknown field")
    listed: list[Any] = body["requests"]
    if not 1 <= len(listed) <= MAX_REQUESTS:
        raise InvalidRequest(
            f"requests: from 1 to {MAX_REQUESTS} in a batch, but there are {len(listed)}"
        )
    return [_request(index, value) for index, value in enumerate(listed)]


def _request(index: int, value: object) -> BatchRequest:
    try:
        return BatchRequest.model_validate(value)
    except ValidationError as error:
        mistakes = (invalid_body(error).details or {})["mistakes"]
        named = [
            {**mistake, "field": f"requests[{index}].{mistake['field']}".rstrip(".")}
            for mistake in mistakes
        ]
        told = "; ".join(f"{mistake['field']}: {mistake['problem']}" for mistake in named)
        raise InvalidRequest(told, details={"mistakes": named}) from None


async def _lines(results: AsyncIterator[list[ItemResult]]) -> AsyncIterator[bytes]:
    async for some in results:
        yield b"".join(_line(result) for result in some)


def _line(item: ItemResult) -> bytes:
    line: dict[str, Any] = {"custom_id": item.custom_id, "status": item.status}
    if item.result is not None:
        line["response" if item.status == "succeeded" else "error"] = orjson.Fragment(item.result)
    return orjson.dumps(line) + b"\n"


def _json(model: BaseModel, status: int = 200) -> JsonResponse:
    return JsonResponse(model.model_dump(mode="json", exclude_none=True), status_code=status)
