"""Routes of batches, below `/internal/llm/batch`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import orjson
from fastapi import Depends, Query, Response
from pydantic import ValidationError
from starlette.requests import Request

from contracts.access.principals import Principal
from contracts.llm.batches import (
    MAX_BATCH_BYTES,
    Batch,
    BatchFilter,
    BatchPage,
    BatchRequest,
    ItemResult,
    NewBatch,
)
from interfaces.http.base.bodies import read_json
from interfaces.http.base.claims import check_body
from interfaces.http.base.errors import JsonResponse, NdjsonResponse, invalid_body
from interfaces.http.base.identity import MicrodaoQuery, TenantRequest, one_tenant
from interfaces.http.base.request_slots import RequestSlot, RequestSlots
from interfaces.http.base.routing import PathId, Router, refusals
from services.llm.batches import Batches

MAX_SUBMISSIONS = 4
"""Batches that one replica checks and stores at a time, each in a few hundred megabytes of memory;
as many bodies, of at most `MAX_BATCH_BYTES`, may be arriving."""


Microdao = Annotated[MicrodaoQuery, Query()]


async def _own(request: Request) -> str | None:
    principal: Principal = request.state.principal
    return None if principal.agents.all else principal.credential


Own = Annotated[str | None, Depends(_own)]
"""Whose batches a caller sees that may not act as every agent: its own."""


@dataclass
class BatchRoutes:
    """What the routes call. `batches` is looked up at each request."""

    batches: Callable[[], Batches]
    _slots: RequestSlots = field(default_factory=lambda: RequestSlots(MAX_SUBMISSIONS), init=False)

    async def submit(self, request: Request) -> Response:
        """`POST /batch`."""
        send = request._send  # noqa: SLF001  # this slot only receives
        slot = RequestSlot(self._slots, request.receive, send)
        try:
            await slot.start("POST")
            raw = await read_json(Request(request.scope, slot.receive), MAX_BATCH_BYTES)
            # Off the event loop: thousands of requests take a while to check.
            requests = await asyncio.to_thread(_requests, raw, request.state.principal)
            batch = await self.batches().submit(requests, credential=request.state.credential)
        finally:
            slot.release()
        return JsonResponse(batch.model_dump(mode="json", exclude_none=True), status_code=202)


async def _documented(batch: NewBatch) -> None:
    """Names the body of `submit`, which reads it itself."""


def add_batch_routes(router: Router, routes: BatchRoutes) -> None:
    """Adds the routes."""
    batch = Router(request_class=TenantRequest)
    one, batches = [Depends(one_tenant)], routes.batches
    batch.hot(
        "POST",
        "/batch",
        routes.submit,
        summary="Submit many requests to be worked off at low priority",
        response_model=Batch,
        status_code=202,
        dependencies=[Depends(_documented)],
        responses=refusals(429),
    )

    @batch.get("/batch", summary="A microDAO's batches, newest first", dependencies=one)
    async def page(query: Annotated[BatchFilter, Query()], own: Own) -> BatchPage:
        return await batches().store.page(query, own)

    @batch.get(
        "/batch/{batch_id}",
        summary="How far a batch is",
        dependencies=one,
        responses=refusals(404),
    )
    async def get(batch_id: PathId, query: Microdao, own: Own) -> Batch:
        return await batches().store.get(query.microdao_id, batch_id, own)

    @batch.get(
        "/batch/{batch_id}/items",
        summary="Every request of a batch and its result, as NDJSON, in the order of submission",
        dependencies=one,
        response_class=NdjsonResponse,
        responses=refusals(404),
    )
    async def items(batch_id: PathId, query: Microdao, own: Own) -> Response:
        return NdjsonResponse(_lines(await batches().results(query.microdao_id, batch_id, own)))

    @batch.delete(
        "/batch/{batch_id}",
        summary="Cancel a batch; what has a result keeps it",
        dependencies=one,
        responses=refusals(404),
    )
    async def cancel(batch_id: PathId, query: Microdao, own: Own) -> Batch:
        return await batches().cancel(query.microdao_id, batch_id, own)

    router.include_router(batch)


def _requests(raw: bytes, principal: Principal) -> list[BatchRequest]:
    """Returns the checked requests.

    Raises InvalidRequest that names the first wrong one, or Forbidden as `check_body`.
    """
    try:
        requests = NewBatch.model_validate_json(raw).requests
    except ValidationError as error:
        raise invalid_body(error) from None
    for request in requests:
        check_body(principal, request)
    return requests


async def _lines(results: AsyncIterator[list[ItemResult]]) -> AsyncIterator[bytes]:
    async for some in results:
        yield b"".join(_line(result) for result in some)


def _line(item: ItemResult) -> bytes:
    line: dict[str, Any] = {"custom_id": item.custom_id, "status": item.status}
    if item.result is not None:
        line["response" if item.status == "succeeded" else "error"] = orjson.Fragment(item.result)
    return orjson.dumps(line) + b"\n"
