"""HTTP routes of the Memory Orchestrator, below `/internal/agent-memory`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import orjson
from fastapi import APIRouter
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from contracts.errors import InvalidRequest, PayloadTooLarge
from contracts.health import Health
from contracts.identity import Tenant
from contracts.memory.administration import (
    EraseReceipt,
    EraseRequest,
    ExportedMemory,
    ExportEnd,
    ExportFilter,
    ImportResponse,
    ReindexReport,
    ReindexRequest,
)
from contracts.memory.api import (
    DeleteResponse,
    ItemsFilter,
    ItemsPage,
    QueryRequest,
    QueryResponse,
    StoreRequest,
    StoreResponse,
    SummarizeRequest,
    SummarizeResponse,
)
from contracts.memory.ports import MemoryRecords
from interfaces.http.base.bodies import read_model, require_lines
from interfaces.http.base.errors import JsonResponse, invalid_body
from interfaces.http.base.health import add_health_routes
from interfaces.http.base.routing import add_route, new_router
from services.memory.erasing import Erasing
from services.memory.knowledge_base import KnowledgeBase
from services.memory.recall import Recall
from services.memory.remembering import Remembering
from services.memory.summarizing import Summarizing

MAX_BODY_BYTES = 4 << 20
MAX_LINE_BYTES = 4 << 20
IMPORT_AT_ONCE = 100
NDJSON = "application/x-ndjson"
UPLOADS = frozenset({"/import"})
"""Bodies of any size, read as they arrive."""
_LINE: TypeAdapter[ExportedMemory | ExportEnd] = TypeAdapter(ExportedMemory | ExportEnd)


class _Identity(Tenant):
    """Query string of a route that names one tenant."""


@dataclass(frozen=True)
class MemoryUseCases:
    """What the routes call; a reload replaces it."""

    recall: Recall
    remembering: Remembering
    summarizing: Summarizing
    records: MemoryRecords
    erasing: Erasing
    knowledge: KnowledgeBase


@dataclass(frozen=True)
class MemoryRoutes:
    """The endpoints. `cases` is looked up at each request."""

    cases: Callable[[], MemoryUseCases]
    health: Callable[[], Health]

    async def query(self, request: Request) -> Response:
        """`POST /query`."""
        body = await read_model(request, QueryRequest, MAX_BODY_BYTES)
        answer = await self.cases().recall.query(body, request.state.request_id)
        return JsonResponse(answer.model_dump(mode="json", exclude_none=True))

    async def store(self, request: Request) -> Response:
        """`POST /store`."""
        body = await read_model(request, StoreRequest, MAX_BODY_BYTES)
        answer = await self.cases().remembering.store(body, request.headers.get("idempotency-key"))
        return JsonResponse(answer.model_dump(exclude_none=True))

    async def summarize(self, request: Request) -> Response:
        """`POST /summarize`."""
        answer = await self.cases().summarizing.summarize(
            await read_model(request, SummarizeRequest, MAX_BODY_BYTES)
        )
        return JsonResponse(answer.model_dump(mode="json", exclude_none=True))

    async def items(self, request: Request) -> Response:
        """`GET /items`."""
        page = await self.cases().records.page(
            ItemsFilter.model_validate(dict(request.query_params))
        )
        return JsonResponse(page.model_dump(mode="json", exclude_none=True))

    async def delete(self, request: Request) -> Response:
        """`DELETE /items/{id}`."""
        tenant = _Identity.model_validate(dict(request.query_params))
        answer = await self.cases().remembering.forget(tenant, request.path_params["item_id"])
        return JsonResponse(answer.model_dump())

    async def erase(self, request: Request) -> Response:
        """`POST /erase`."""
        receipt = await self.cases().erasing.erase(await read_model(request, EraseRequest))
        return JsonResponse(receipt.model_dump(mode="json", exclude_none=True))

    async def export(self, request: Request) -> Response:
        """`GET /export`: one memory a line, then one line with their number."""
        pages = self.cases().records.export(ExportFilter.model_validate(dict(request.query_params)))
        first: list[ExportedMemory] = await anext(pages, [])  # a refusal still gets its status
        return StreamingResponse(_export_lines(first, pages), media_type=NDJSON)

    async def restore(self, request: Request) -> Response:
        """`POST /import`: an export's lines, for the tenant of the query string."""
        tenant = _Identity.model_validate(dict(request.query_params))
        require_lines(request.scope["headers"])
        imported = total = 0
        async for batch in _import_batches(request):
            imported += await self.cases().remembering.restore(tenant, batch)
            total += len(batch)
        return JsonResponse(ImportResponse(imported=imported, known=total - imported).model_dump())

    async def reindex(self, request: Request) -> Response:
        """`POST /kb/reindex`."""
        body = await read_model(request, ReindexRequest)
        report = await self.cases().knowledge.reindex(body.microdao_id)
        return JsonResponse(report.model_dump())


def is_admin(method: str, path: str) -> bool:
    """Whether a route of this application needs the admin secret."""
    return (method, path) in {
        ("POST", "/erase"),
        ("GET", "/export"),
        ("HEAD", "/export"),
        ("POST", "/import"),
        ("POST", "/kb/reindex"),
    }


def memory_router(routes: MemoryRoutes) -> APIRouter:
    """Returns the router of the application."""
    router = new_router()
    add_route(
        router, "POST", "/query", routes.query,
        summary="What is remembered about a question", body=QueryRequest, response=QueryResponse, errors=(400, 401, 413, 503, 504),
    )  # fmt: skip
    add_route(
        router, "POST", "/store", routes.store,
        summary="Remember something", body=StoreRequest, response=StoreResponse, errors=(400, 401, 409, 413, 503),
    )  # fmt: skip
    add_route(
        router, "POST", "/summarize", routes.summarize,
        summary="A rolling summary of the newest events",
        body=SummarizeRequest, response=SummarizeResponse, errors=(400, 401, 413, 502, 503, 504),
    )  # fmt: skip
    add_route(
        router, "GET", "/items", routes.items,
        summary="What is stored, newest first", query=ItemsFilter, response=ItemsPage, errors=(400, 401, 503),
    )  # fmt: skip
    add_route(
        router, "DELETE", "/items/{item_id}", routes.delete,
        summary="Forget one memory", query=_Identity, response=DeleteResponse, errors=(400, 401, 404, 503),
    )  # fmt: skip
    _add_admin_routes(router, routes)
    add_health_routes(router, routes.health)
    return router


def _add_admin_routes(router: APIRouter, routes: MemoryRoutes) -> None:
    add_route(
        router, "POST", "/erase", routes.erase,
        summary="Admin: erase a microDAO, an agent or a channel", body=EraseRequest, response=EraseReceipt, errors=(400, 401, 403, 503),
    )  # fmt: skip
    add_route(
        router, "GET", "/export", routes.export,
        summary="Admin: every memory as NDJSON", query=ExportFilter, media_type=NDJSON, errors=(400, 401, 403, 503),
    )  # fmt: skip
    add_route(
        router, "POST", "/import", routes.restore,
        summary="Admin: read an export again", query=_Identity, response=ImportResponse, errors=(400, 401, 403, 408, 413, 415, 503),
    )  # fmt: skip
    add_route(
        router, "POST", "/kb/reindex", routes.reindex,
        summary="Admin: look at the knowledge base now", body=ReindexRequest, response=ReindexReport, errors=(400, 401, 403, 409, 503),
    )  # fmt: skip


async def _export_lines(
    first: list[ExportedMemory], pages: AsyncIterator[list[ExportedMemory]]
) -> AsyncIterator[bytes]:
    count = 0
    page = first
    while page:
        count += len(page)
        yield b"".join(
            orjson.dumps(memory.model_dump(mode="json", exclude_none=True)) + b"\n"
            for memory in page
        )
        page = await anext(pages, [])
    yield orjson.dumps(ExportEnd(count=count).model_dump()) + b"\n"


async def _import_batches(request: Request) -> AsyncIterator[list[ExportedMemory]]:
    """Yields the memories of a body of any size, some at a time. Raises InvalidRequest naming the line, or when the end is missing."""
    batch: list[ExportedMemory] = []
    count, ended = 0, False
    number = 0
    async for number, line in _lines(request):
        if ended:
            raise InvalidRequest(f"line {number}: nothing may follow the end")
        record = _record(number, line)
        if isinstance(record, ExportEnd):
            ended = True
            _check_count(number, record.count, count)
            continue
        count += 1
        batch.append(record)
        if len(batch) == IMPORT_AT_ONCE:
            yield batch
            batch = []
    if not ended:
        raise InvalidRequest(
            f"the export ends after line {number} without its end: what came before is imported, the rest is missing"
        )
    if batch:
        yield batch


def _check_count(number: int, announced: int, count: int) -> None:
    if announced != count:
        raise InvalidRequest(
            f"line {number}: the export should have {announced} memories, but {count} came"
        )


def _record(number: int, line: bytes) -> ExportedMemory | ExportEnd:
    try:
        return _LINE.validate_json(line)
    except ValidationError as error:
        leaf = invalid_body(error)
        raise InvalidRequest(f"line {number}: {leaf.message}", details=leaf.details) from None


async def _lines(request: Request) -> AsyncIterator[tuple[int, bytes]]:
    number, rest = 0, b""
    async for piece in request.stream():
        *whole, rest = (rest + piece).split(b"\n")
        for line in _not_blank(whole):
            number += 1
            yield number, line
        if len(rest) > MAX_LINE_BYTES:
            raise PayloadTooLarge(f"line {number + 1} is over {MAX_LINE_BYTES >> 20} MiB")
    for line in _not_blank([rest]):
        yield number + 1, line


def _not_blank(lines: list[bytes]) -> Iterator[bytes]:
    return (line for line in lines if line.strip())
