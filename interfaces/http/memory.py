"""HTTP routes of the Memory Orchestrator, below `/internal/agent-memory`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import orjson
from fastapi import Depends, Query, Response
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp

from contracts.errors import Forbidden, InvalidRequest, PayloadTooLarge
from contracts.health import Health
from contracts.identity import Page, Tenant
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
from contracts.memory.documents import (
    DocumentAnswer,
    DocumentName,
    DocumentsFilter,
    StoredDocument,
)
from contracts.memory.ports import MemoryRecords
from contracts.memory.stats import AgentStats, StatsFilter, StatsReader
from interfaces.http.base.bodies import read_raw, refuse_forms, require_lines
from interfaces.http.base.errors import JsonResponse, NdjsonResponse, invalid_body
from interfaces.http.base.health import add_health_routes
from interfaces.http.base.routing import MCP_PATH, PathId, Router, documented_key, refusals
from services.memory.documents import Documents
from services.memory.erasing import Erasing
from services.memory.knowledge_base import KnowledgeBase
from services.memory.recall import Recall
from services.memory.remembering import Remembering
from services.memory.summarizing import Summarizing

MAX_BODY_BYTES = 4 << 20
MAX_LINE_BYTES = 4 << 20
IMPORT_AT_ONCE = 100
UPLOADS = frozenset({"/import", "/documents"})
"""Large bodies, which may take long to arrive."""
BINARY = {"requestBody": {"required": True, "content": {"application/octet-stream": {}}}}
_LINE: TypeAdapter[ExportedMemory | ExportEnd] = TypeAdapter(ExportedMemory | ExportEnd)


@dataclass(frozen=True)
class MemoryUseCases:
    """The use cases behind the routes; a reload replaces them."""

    recall: Recall
    remembering: Remembering
    summarizing: Summarizing
    records: MemoryRecords
    statistics: StatsReader
    erasing: Erasing
    knowledge: KnowledgeBase
    documents: Documents


def is_admin(method: str, path: str) -> bool:
    """Whether a route of this application needs the admin secret."""
    return (method, path) in {
        ("POST", "/erase"),
        ("GET", "/export"),
        ("HEAD", "/export"),
        ("POST", "/import"),
        ("POST", "/kb/reindex"),
    }


def memory_router(
    cases: Callable[[], MemoryUseCases], health: Callable[[], Health], mcp: ASGIApp | None = None
) -> Router:
    """Returns the router of the application. `cases` and `health` are called at each request.

    `mcp` serves the memory to MCP clients.
    """
    router = Router(MAX_BODY_BYTES)
    if mcp is not None:
        router.routes.append(Route(MCP_PATH, endpoint=mcp, include_in_schema=False))

    async def query(request: Request, question: QueryRequest) -> Response:
        answer = await cases().recall.query(question, request.state.request_id)
        return JsonResponse(answer.model_dump(mode="json", exclude_none=True))

    async def store(request: Request, memory: StoreRequest) -> Response:
        key = request.headers.get("idempotency-key")
        answer = await cases().remembering.store(memory, key)
        return JsonResponse(answer.model_dump(exclude_none=True))

    router.hot(
        "POST",
        "/query",
        query,
        summary="Find what is stored about a question",
        response_model=QueryResponse,
        responses=refusals(504),
    )
    router.hot(
        "POST",
        "/store",
        store,
        summary="Remember something",
        response_model=StoreResponse,
        dependencies=[Depends(documented_key)],
        responses=refusals(409, 429),
    )

    @router.post(
        "/summarize",
        summary="A rolling summary of the newest events",
        responses=refusals(502, 504),
    )
    async def summarize(wanted: SummarizeRequest) -> SummarizeResponse:
        return await cases().summarizing.summarize(wanted)

    @router.get("/items", summary="Stored memories, newest first")
    async def items(query: Annotated[ItemsFilter, Query()]) -> ItemsPage:
        return await cases().records.page(query)

    @router.delete("/items/{item_id}", summary="Forget one memory", responses=refusals(404))
    async def delete(item_id: PathId, tenant: Annotated[Tenant, Query()]) -> DeleteResponse:
        return await cases().remembering.forget(tenant, item_id)

    @router.get(
        "/stats", summary="What is stored, by agent, tier and kind", responses=refusals(504)
    )
    async def stats(request: Request, query: Annotated[StatsFilter, Query()]) -> Page[AgentStats]:
        if query.microdao_id is None and not request.state.principal.is_operator:
            raise Forbidden("give `microdao_id`: only operators see all microDAOs together")
        return await cases().statistics.page(query)

    _add_document_routes(router, cases)
    _add_admin_routes(router, cases)
    add_health_routes(router, health)
    return router


def _add_document_routes(router: Router, cases: Callable[[], MemoryUseCases]) -> None:
    def check_writer(request: Request) -> None:
        """Other agents read what is written, so an agent may not, nor a run of one."""
        principal = request.state.principal
        if principal.grants.kind == "agent" or principal.tenant is not None:
            raise Forbidden(
                f"`{principal.name}` is an agent: documents are stored and deleted by services, "
                "persons and operators"
            )

    writing = [Depends(check_writer)]

    @router.put(
        "/documents",
        summary="Store and index a document: PDF, DOCX, HTML, Markdown or text",
        openapi_extra=BINARY,
        dependencies=writing,
        responses=refusals(408, 409, 413, 415, 429),
    )
    async def put(request: Request, name: Annotated[DocumentName, Query()]) -> DocumentAnswer:
        refuse_forms(request.scope["headers"])
        documents = cases().documents
        async with documents.admitted(name.microdao_id):
            data = await read_raw(request, documents.most_bytes(name.path))
            return await documents.put(name, data)

    @router.get("/documents", summary="A microDAO's documents, in order of their paths")
    async def page(query: Annotated[DocumentsFilter, Query()]) -> Page[StoredDocument]:
        return await cases().documents.page(query)

    @router.delete(
        "/documents",
        summary="Delete a document from every tier",
        dependencies=writing,
        responses=refusals(404, 409),
    )
    async def remove(name: Annotated[DocumentName, Query()]) -> DeleteResponse:
        await cases().documents.remove(name)
        return DeleteResponse(id=name.path)


def _add_admin_routes(router: Router, cases: Callable[[], MemoryUseCases]) -> None:
    @router.post("/erase", summary="Admin: erase a microDAO, an agent or a channel")
    async def erase(wanted: EraseRequest) -> EraseReceipt:
        return await cases().erasing.erase(wanted)

    @router.get(
        "/export",
        summary="Admin: every memory as NDJSON, one line each, then one line with their number",
        response_class=NdjsonResponse,
    )
    async def export(query: Annotated[ExportFilter, Query()]) -> Response:
        pages = cases().records.export(query)
        first: list[ExportedMemory] = await anext(pages, [])  # a refusal still gets its status
        return NdjsonResponse(_export_lines(first, pages))

    @router.post(
        "/import",
        summary="Admin: import an export for the tenant of the query",
        responses=refusals(408, 413, 415, 429),
    )
    async def restore(request: Request, tenant: Annotated[Tenant, Query()]) -> ImportResponse:
        require_lines(request.scope["headers"])
        imported = total = 0
        async for batch in _import_batches(request):
            imported += await cases().remembering.restore(tenant, batch)
            total += len(batch)
        return ImportResponse(imported=imported, known=total - imported)

    @router.post(
        "/kb/reindex",
        summary="Admin: index the knowledge base now",
        responses=refusals(409),
    )
    async def reindex(wanted: ReindexRequest) -> ReindexReport:
        return await cases().knowledge.reindex(wanted.microdao_id)


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
    """Yields the memories of a body of any size in batches. Raises InvalidRequest with the line."""
    batch: list[ExportedMemory] = []
    count, ended = 0, False
    number = 0
    async for number, line in _lines(request):
        if ended:
            raise InvalidRequest(f"line {number}: nothing may follow the end")
        record = _record(number, line)
        if isinstance(record, ExportEnd):
            ended = True
            if record.count != count:
                raise InvalidRequest(
                    f"line {number}: the export should have {record.count} memories, but has "
                    f"{count}"
                )
            continue
        count += 1
        batch.append(record)
        if len(batch) == IMPORT_AT_ONCE:
            yield batch
            batch = []
    if not number:
        raise InvalidRequest("the body is empty: send the lines of an export")
    if not ended:
        raise InvalidRequest(
            f"the export is cut off after line {number}: the memories before it are imported, the "
            "rest is missing"
        )
    if batch:
        yield batch


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
