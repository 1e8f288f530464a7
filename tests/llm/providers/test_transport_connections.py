"""How `providers/transport.py` makes, keeps and closes connections, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from pathlib import Path

import pytest
import uvloop

from common.http.client import tls_context
from common.http.errors import (
    AnswerCutOff,
    ConnectFailed,
    ConnectionBroken,
    ConnectTimedOut,
    MalformedAnswer,
    TimedOut,
)
from providers import transport as transport_module
from providers.transport import Transport
from tests.support.llm.forward_proxy import server_certificate
from tests.support.llm.prepared_answers import Server, answer, answering, serving, whole
from tests.support.llm.upstream.sockets import hanging_port, refused_port


async def test_connections_are_reused() -> None:
    async with answering(answer()) as (server, transport):
        await asyncio.gather(whole(transport), whole(transport), whole(transport))
        assert server.opened == 3
        for _ in range(20):
            await whole(transport)
        assert server.opened == 3


NOT_REUSED = {
    "closed by its word": answer(b"ok", "Connection: close"),
    "a second answer behind the first": answer() + answer(b"injected"),
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok<end>",
}


@pytest.mark.parametrize("one", NOT_REUSED.values(), ids=NOT_REUSED)
async def test_connections_that_may_be_spoilt_are_not_reused(one: bytes) -> None:
    async with answering(one, answer(b"mine")) as (server, transport):
        assert await whole(transport) == (200, b"ok")
        assert await whole(transport) == (200, b"mine")
        assert server.opened == 2


async def test_an_answer_without_a_request_reaches_no_caller() -> None:
    async def chatty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        await reader.readuntil(b"{}")
        writer.write(answer())
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(answer(b"injected"))
        await writer.drain()
        sent.set()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        gone.set()

    opened, sent, gone = 0, asyncio.Event(), asyncio.Event()
    async with serving(chatty) as port:
        transport = Transport(f"http://127.0.0.1:{port}/", {})
        assert await whole(transport) == (200, b"ok")
        async with asyncio.timeout(20):
            await sent.wait()
            await asyncio.sleep(0.1)  # bytes still in transit look like an answer
            assert await whole(transport) == (200, b"ok")
            await gone.wait()
        assert opened == 2
        await transport.close()


async def test_a_connection_that_was_closed_while_idle_is_not_used() -> None:
    async with answering(answer() + b"<end>") as (server, transport):
        for _ in range(3):
            assert await whole(transport) == (200, b"ok")
            await asyncio.sleep(0.05)
        assert server.opened == 3


async def test_an_idle_connection_is_closed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "KEEPALIVE_S", 0.1)
    async with answering(answer()) as (server, transport):
        await whole(transport)
        async with asyncio.timeout(10):
            await server.closed.wait()


async def test_a_cancelled_call_closes_its_connection() -> None:
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok") as (server, transport):
        call = asyncio.create_task(whole(transport))
        while not server.requests:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(10):
            await server.closed.wait()


async def test_closing_the_transport_breaks_calls_in_progress() -> None:
    async with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", answer()) as (
        server,
        transport,
    ):
        call = asyncio.create_task(whole(transport))
        while not server.requests:
            await asyncio.sleep(0.01)
        await transport.close()
        with pytest.raises((AnswerCutOff, ConnectionBroken)):
            await call


async def test_an_early_answer_is_returned_and_its_connection_closed() -> None:
    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer(b"too large", status="413 Payload Too Large"))
        await asyncio.sleep(60)

    connections: list[asyncio.StreamWriter] = []
    async with serving(hasty) as port:
        transport = Transport(f"http://127.0.0.1:{port}/", {})
        async with asyncio.timeout(20):
            assert await whole(transport, b"x" * (32 << 20)) == (413, b"too large")
            assert await whole(transport, b"x" * (32 << 20)) == (413, b"too large")
        assert len(connections) == 2
        await transport.close()


async def failing(url: str, connect_s: float = 5, limit_s: float = math.inf) -> None:
    transport = Transport(url, {})
    try:
        await transport.post(b"", connect_s=connect_s, limit_s=limit_s)
    finally:
        await transport.close()


@pytest.mark.parametrize("limit_s", [0, 0.2])
async def test_a_limit_shorter_than_connecting_may_take_ends_it(limit_s: float) -> None:
    with hanging_port() as port, pytest.raises(TimedOut):
        async with asyncio.timeout(3):
            await failing(f"http://127.0.0.1:{port}/", limit_s=limit_s)


async def test_a_refused_a_hanging_and_an_unknown_address() -> None:
    with refused_port() as port, pytest.raises(ConnectFailed):
        await failing(f"http://127.0.0.1:{port}/", connect_s=5)
    with hanging_port() as port, pytest.raises(ConnectTimedOut):
        await failing(f"http://127.0.0.1:{port}/", connect_s=0.2)
    with pytest.raises(ConnectFailed):
        await failing("http://no-such-host.invalid/", connect_s=5)
    with pytest.raises(ConnectFailed):
        await failing(f"http://{'a' * 70}.invalid/", connect_s=5)


async def test_the_next_address_is_tried_where_one_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server([answer()])
    async with serving(server.serve) as port:
        with refused_port() as refused:
            loop = asyncio.get_running_loop()

            async def found(*_: object, **__: object) -> list[object]:
                kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
                return [(*kind, ("127.0.0.1", refused)), (*kind, ("127.0.0.1", port))]

            monkeypatch.setattr(loop, "getaddrinfo", found)
            transport = Transport("http://two-addresses.test/", {})
            assert await whole(transport) == (200, b"ok")
            await transport.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_tls_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    authority, context = server_certificate(tmp_path, f"IP:{host}")
    server = Server([answer(b"x" * 100_000)])
    async with serving(server.serve, context, host) as port:
        url = f"https://{f'[{host}]' if ':' in host else host}:{port}/"
        tls_context.cache_clear()
        with pytest.raises(ConnectFailed):
            await failing(url, connect_s=5)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        tls_context.cache_clear()
        transport = Transport(url, {})
        assert len((await whole(transport))[1]) == 100_000
        assert len((await whole(transport))[1]) == 100_000
        assert len(server.requests) == 2
        await transport.close()
        tls_context.cache_clear()


@pytest.mark.parametrize("value", ["a\r\nX-B: c", "a\nb", "a\0"])
async def test_a_header_that_would_be_two_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="control character"):
        Transport("http://127.0.0.1/", {"X-A": value})


async def test_a_header_in_any_spelling_replaces_ours() -> None:
    server = Server([answer()])
    async with serving(server.serve) as port:
        transport = Transport(
            f"http://127.0.0.1:{port}/", {"accept": "application/json", "CONTENT-type": "x"}
        )
        await whole(transport)
        assert server.requests[0].lower().count(b"accept:") == 1
        assert server.requests[0].lower().count(b"content-type:") == 1
        await transport.close()


GREETINGS = {"another protocol": b"220 mail.example ESMTP\r\n", "an answer": answer(b"early")}


@pytest.mark.parametrize("greeting", GREETINGS.values(), ids=GREETINGS)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_server_that_speaks_first_is_connected_to_once(greeting: bytes, loop: str) -> None:
    """On uvloop, as in a replica, the first bytes arrive before the connection is looked at."""
    opened = 0

    async def speak(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        writer.write(greeting)
        with contextlib.suppress(ConnectionError):
            await writer.drain()

    async def call() -> None:
        server = await asyncio.start_server(speak, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        transport = Transport(f"http://127.0.0.1:{port}/", {})
        try:
            with contextlib.suppress(MalformedAnswer, ConnectionBroken):
                exchange = await transport.post(b"{}", connect_s=2, limit_s=5)
                exchange.release()
        finally:
            await transport.close()
            server.close()

    factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(call())
    assert opened == 1


async def test_a_name_is_looked_up_again_after_a_failed_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_up = 0

    async def resolve(self, host, port=0, family=0):
        nonlocal looked_up
        looked_up += 1
        return [
            {
                "hostname": host,
                "host": "127.0.0.1",
                "port": port,
                "family": socket.AF_INET,
                "proto": 0,
                "flags": 0,
            }
        ]

    monkeypatch.setattr("aiohttp.resolver.ThreadedResolver.resolve", resolve)
    monkeypatch.setattr("aiohttp.connector.DefaultResolver.resolve", resolve)
    with refused_port() as port:
        transport = Transport(f"http://gateway.example:{port}/", {})
        for _ in range(2):
            with pytest.raises(ConnectFailed):
                await transport.post(b"{}", connect_s=2)
        await transport.close()
    assert looked_up == 2
    with pytest.raises(ConnectFailed):  # closed
        await transport.post(b"{}", connect_s=2)
