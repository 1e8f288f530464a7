"""Clients that send or read slowly, over real HTTP, do not slow others down."""

import asyncio
import contextlib
import json

import httpx
import pytest
from starlette.responses import Response
from uvicorn.protocols.http import auto

from contracts.errors import RequestTimeout
from deployments.graph import request_heads
from deployments.graph.ray_patches import bound_heads
from interfaces.http.base import request_slots
from interfaces.http.base.bodies import read_json
from interfaces.http.base.ingress import Ingress
from interfaces.http.base.request_slots import RequestSlot, RequestSlots
from interfaces.http.base.routing import Router
from interfaces.http.base.sse import EventStreamResponse
from interfaces.http.llm.batches import MAX_SUBMISSIONS, BatchRoutes, add_batch_routes
from interfaces.http.memory import UPLOADS
from tests.support.access import access_control
from tests.support.uvicorn_server import JSON, served

PATIENCE_S = 60


MOST = 3


class Served:
    """An application whose endpoints report what they do."""

    def __init__(self):
        self.url = ""
        self.parts = asyncio.Queue()
        self.may_answer = asyncio.Event()
        self.ended = asyncio.Event()

    async def whole(self, request):
        return Response(str(len(await read_json(request, 1 << 20))))

    async def streamed(self, request):
        async for part in request.stream():
            await self.parts.put(bytes(part))
        return Response("imported")

    async def busy(self, _request):
        await self.may_answer.wait()
        return Response("done")

    async def large(self, _request):
        return Response(b"x" * (32 << 20))

    async def endless(self, _request):
        async def endless():
            while True:
                yield b"x" * 65_536

        async def close():
            self.ended.set()

        return EventStreamResponse(endless(), close)

    @contextlib.asynccontextmanager
    async def begun(self, path, *parts, length=1_000):
        """Yields a connection whose head was accepted, after these parts of its body were sent."""
        host, port = self.url.removeprefix("http://").split(":")
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection(host, int(port))
            head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            head += "Expect: 100-continue\r\n"
            writer.write(f"{head}Content-Length: {length}\r\n\r\n".encode())
            assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
            for part in parts:
                writer.write(part)
            yield reader, writer
            writer.close()


@pytest.fixture
async def here(events):
    application = Served()
    router = Router()
    for method, path, endpoint in (
        ("POST", "/whole", application.whole),
        ("POST", "/streamed", application.streamed),
        ("GET", "/busy", application.busy),
        ("GET", "/large", application.large),
        ("GET", "/endless", application.endless),
    ):
        router.hot(method, path, endpoint)
    async with served(
        Ingress(router, access_control(), events, max_concurrent=MOST)
    ) as application.url:
        yield application


@pytest.fixture
async def http(here):
    async with httpx.AsyncClient(base_url=here.url, headers=JSON, timeout=PATIENCE_S) as client:
        yield client


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(request_slots, "GRACE_S", 0.3)
    monkeypatch.setattr(request_slots, "SWEEP_S", 0.05)


async def answered(reader):
    """Returns the answer; the server then closes the connection."""
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    return int(head.split()[1]), head.lower(), json.loads(body)


@pytest.mark.parametrize("bytes_per_s", [0, 5_000], ids=["silent", "slow"])
async def test_slow_clients_do_not_block_others(here, http, monkeypatch, bytes_per_s):
    monkeypatch.setattr(request_slots, "GRACE_S", 1_000)  # no deadline helps
    async with (
        asyncio.TaskGroup() as tasks,
        contextlib.AsyncExitStack() as slow,
        asyncio.timeout(PATIENCE_S),
    ):
        begun = [
            await slow.enter_async_context(here.begun("/whole", length=1_000_000))
            for _ in range(MOST)
        ]
        slow.callback(
            tasks.create_task(keep_sending([writer for _, writer in begun], bytes_per_s)).cancel
        )
        while (
            answer := await http.post("/whole", content=b"{}")
        ).status_code == 503:  # each is spared for `SPARED_S`
            await asyncio.sleep(0.1)
        assert answer.text == "2"
        for _ in range(MOST * 3):
            assert (await http.post("/whole", content=b"{}")).text == "2"
        ends = [asyncio.create_task(end_of(reader)) for reader, _ in begun]
        _, alive = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        assert len(alive) == MOST - 1
        for task in alive:
            task.cancel()


async def end_of(reader):
    with contextlib.suppress(
        ConnectionError
    ):  # what is sent after the answer may reset the connection
        await reader.read()


@pytest.mark.parametrize("parts", [(), (b'{"half": ',)], ids=["no body", "half a body"])
async def test_a_body_that_stops_arriving_is_answered_408(here, hasty, parts, events):
    async with here.begun("/whole", *parts) as (reader, _):
        status, head, body = await answered(reader)
    assert (status, body["error"]["type"], body["error"]["retryable"]) == (
        408,
        "request_timeout",
        True,
    )
    assert b"connection: close" in head
    assert events.events == []


async def test_a_body_that_comes_byte_by_byte_is_ended(here, hasty):
    async with here.begun("/whole", length=1_000_000) as (reader, writer):
        answer = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
        while not answer.done():
            writer.write(b" ")
            await asyncio.sleep(0.01)
        with contextlib.suppress(
            ConnectionError
        ):  # a byte that crosses the answer may reset the connection
            assert b" 408 " in await answer


async def test_slow_submissions_of_batches_do_not_block_others(events, monkeypatch):
    monkeypatch.setattr(request_slots, "GRACE_S", 1_000)
    router = Router()
    add_batch_routes(router, BatchRoutes(lambda: None))
    async with contextlib.AsyncExitStack() as slow, asyncio.timeout(PATIENCE_S):
        application = Served()
        application.url = await slow.enter_async_context(
            served(Ingress(router, access_control(), events, max_concurrent=50))
        )
        http = await slow.enter_async_context(
            httpx.AsyncClient(base_url=application.url, headers=JSON)
        )
        for _ in range(MAX_SUBMISSIONS):
            await slow.enter_async_context(application.begun("/batch", b"{"))
        while (answer := await http.post("/batch", content=b"{}")).status_code == 503:
            await asyncio.sleep(0.1)
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request")


async def test_an_upload_may_take_longer_than_another_body(events, hasty, monkeypatch):
    monkeypatch.setattr("interfaces.http.base.ingress.BODY_S", 0.1)
    application, router = Served(), Router()
    for path in ("/whole", *UPLOADS):
        router.hot("POST", path, application.whole)
    ingress = Ingress(router, access_control(), events, max_concurrent=9, uploads=UPLOADS)
    monkeypatch.setattr(request_slots, "GRACE_S", 1_000)
    async with (
        served(ingress) as application.url,
        application.begun("/import", length=2) as (reader, writer),
    ):
        async with application.begun("/whole", length=2) as (refused, _):
            status, _, body = await answered(refused)
        assert (status, "within 0.1 s" in body["error"]["message"]) == (408, True)
        writer.write(b"{}")
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")


async def test_arriving_bodies_are_bounded_while_none_may_be_evicted(here, http, monkeypatch):
    monkeypatch.setattr(request_slots, "SPARED_S", PATIENCE_S)
    async with contextlib.AsyncExitStack() as lively:
        writers = [
            (await lively.enter_async_context(here.begun("/streamed", b"x")))[1]
            for _ in range(MOST)
        ]
        for _ in writers:
            await here.parts.get()
        refused = await http.post("/whole", content=b"{}")
        assert (
            refused.status_code,
            refused.json()["error"]["type"],
            refused.headers["retry-after"],
        ) == (503, "overloaded", "1")
        writers[0].close()
        async with asyncio.timeout(PATIENCE_S):
            while (await http.post("/whole", content=b"{}")).status_code != 200:
                await asyncio.sleep(0.05)


async def keep_sending(writers, bytes_per_s):
    while True:
        for writer in writers:
            if not writer.is_closing():
                writer.write(b"x" * (bytes_per_s // 50))
        await asyncio.sleep(0.02)


async def test_a_complete_body_is_refused_while_all_slots_are_busy(here, http):
    async with asyncio.TaskGroup() as busy, asyncio.timeout(PATIENCE_S):
        async with here.begun("/whole", b'{"a":', length=8) as (reader, writer):
            waiting = [busy.create_task(http.get("/busy")) for _ in range(MOST)]
            while (await http.post("/whole", content=b"{}")).status_code != 503:
                await asyncio.sleep(0.01)
            writer.write(b" 1}")
            assert b" 503 " in await reader.readuntil(b"\r\n\r\n")
        here.may_answer.set()
    assert {task.result().status_code for task in waiting} == {200}
    assert (await http.post("/whole", content=b"{}")).status_code == 200


async def test_an_upload_is_processed_as_it_arrives_and_takes_no_slot(here, http):
    async with contextlib.AsyncExitStack() as uploads:
        begun = [
            await uploads.enter_async_context(here.begun("/streamed", b"12345", length=10))
            for _ in range(MOST - 1)
        ]
        for _ in begun:
            assert await here.parts.get() == b"12345"
        assert (await http.post("/whole", content=b"{}")).status_code == 200
        for reader, writer in begun:
            writer.write(b"67890")
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")


async def test_a_stream_that_nobody_reads_ends(here, hasty, events, monkeypatch):
    monkeypatch.setattr(request_slots, "UNREAD_S", 0.2)
    host, port = here.url.removeprefix("http://").split(":")
    async with asyncio.timeout(PATIENCE_S):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET /endless HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        await here.ended.wait()
        writer.close()
    assert events.events == []


@pytest.mark.parametrize("also_ours", [False, True])
async def test_a_cancelled_waiting_request_ends(hasty, also_ours):
    slot = RequestSlot(RequestSlots(1), asyncio.Event().wait, asyncio.Event().wait)
    task = asyncio.create_task(slot.start("POST"))
    await asyncio.sleep(0)
    if also_ours:
        slot.cancel()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    slot.release()


async def test_timed_out_requests_leave_no_slot_taken(here, http, hasty):
    shared = RequestSlots(MOST)
    for _ in range(MOST * 2):
        slot = RequestSlot(shared, asyncio.Event().wait, asyncio.Event().wait)
        with pytest.raises(RequestTimeout):
            await slot.start("POST")
        slot.release()
    assert (shared.running, shared.arriving, shared.watched) == (0, 0, set())


@pytest.fixture
def heads(monkeypatch):
    """Servers of this process bound their heads, as Serve's do after its callback."""
    monkeypatch.setattr(auto, "AutoHTTPProtocol", auto.AutoHTTPProtocol)
    monkeypatch.setattr(request_heads, "HEAD_S", 0.3)
    assert bound_heads() == []


WHOLE = (
    b"POST /whole HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n"
)


@pytest.mark.parametrize(
    "sent", [b"", b"POST /wh", WHOLE + b"{}" + b"POST", WHOLE + b"{}" + b"\r\n"], ids=repr
)
async def test_a_missing_head_ends_the_connection(heads, here, sent):
    host, port = here.url.removeprefix("http://").split(":")
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection(host, int(port))
        if WHOLE in sent:
            writer.write(WHOLE + b"{}")
            await reader.readuntil(b"\r\n\r\n2")
        writer.write(sent.removeprefix(WHOLE + b"{}"))
        assert await reader.read() == b""
        writer.close()


async def test_an_endless_head_is_not_buffered(heads, here, monkeypatch):
    monkeypatch.setattr(request_heads, "HEAD_S", 1_000)
    host, port = here.url.removeprefix("http://").split(":")
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection(host, int(port))
        with contextlib.suppress(ConnectionError):
            writer.write(b"GET / HTTP/1.1\r\n")
            for _ in range(1_000):
                writer.write(b"X: y\r\n" * 1_000)
                await writer.drain()
            assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize(
    "then", [b"POST", b""], ids=["and begins another request", "and sends nothing"]
)
async def test_a_client_that_reads_nothing_does_not_keep_its_connection(
    heads, here, monkeypatch, then
):
    lost = asyncio.Event()
    monkeypatch.setattr(request_heads.BoundedHeads, "connection_lost", lambda *_: lost.set())
    if not then:
        monkeypatch.setattr(request_heads, "UNREAD_S", 0.3)
    host, port = here.url.removeprefix("http://").split(":")
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET /large HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(then)
        await lost.wait()
        writer.close()


async def test_the_bound_applies_to_heads_only(heads, here, http):
    """Slow bodies, slow answers and connections idle between two requests are not ended."""
    async with here.begun("/streamed", b"12345", length=10) as (reader, writer):
        await asyncio.sleep(1)
        writer.write(b"67890")
        await reader.readuntil(b"imported")
        await asyncio.sleep(1)
        writer.write(WHOLE + b"{}")
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n2")
    answer = asyncio.create_task(http.get("/busy"))
    await asyncio.sleep(1)
    here.may_answer.set()
    assert (await answer).text == "done"
