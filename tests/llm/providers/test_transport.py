"""`providers/transport.py` against servers that speak HTTP/1.1 well, badly and not at all, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from common.http.client import tls_context
from common.http.errors import (
    AnswerCutOff,
    AnswerTooLarge,
    ConnectFailed,
    ConnectionBroken,
    ConnectTimedOut,
    MalformedAnswer,
    TimedOut,
)
from common.http.inflate import PIECE_BYTES
from providers import transport as transport_module
from providers.transport import Transport
from tests.support.llm.forward_proxy import server_certificate
from tests.support.llm.upstream.sockets import hanging_port, refused_port

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
LIMIT = 64 << 20


@dataclass
class Server:
    """Answers each request with the next of `answers`, the last one for ever; counts connections and their ends."""

    answers: list[bytes]
    port: int = 0
    opened: int = 0
    requests: list[bytes] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        with contextlib.suppress(
            ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError
        ):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line[15:])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length:")
                )
                self.requests.append(head + await reader.readexactly(length))
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                answer, hang_up, _ = answer.partition(b"<end>")
                writer.write(answer)
                await writer.drain()
                if hang_up:
                    break
        self.closed.set()
        writer.close()


@contextlib.asynccontextmanager
async def serving(
    serve: Serve, context: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[int]:
    server = await asyncio.start_server(serve, host, 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


@contextlib.asynccontextmanager
async def answering(*answers: bytes) -> AsyncIterator[tuple[Server, Transport]]:
    server = Server(list(answers))
    async with serving(server.serve) as port:
        transport = Transport(
            f"http://127.0.0.1:{port}/v1/chat", {"Authorization": "Bearer k", "User-Agent": "test"}
        )
        try:
            yield server, transport
        finally:
            await transport.close()


async def whole(
    transport: Transport, body: bytes = b"{}", limit_s: float = 20
) -> tuple[int, bytes]:
    exchange = await transport.post(body, connect_s=5, limit_s=limit_s)
    try:
        return exchange.status, await exchange.whole(LIMIT)
    finally:
        exchange.release()


def answer(body: bytes = b"ok", *lines: str, status: str = "200 OK") -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def chunked(*pieces: bytes, tail: bytes = b"0\r\n\r\n") -> bytes:
    frames = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + frames + tail


GOOD = {
    "content length": answer(),
    "chunked": chunked(b"o", b"k"),
    "chunked with an extension and trailers": chunked(b"ok", tail=b"0;a=b\r\nX-Sum: 1\r\n\r\n"),
    "until the end of the connection": b"HTTP/1.1 200 OK\r\n\r\nok<end>",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok<end>",
    "interim answers first": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    + answer(),
    "gzip": answer(gzip.compress(b"ok"), "Content-Encoding: gzip"),
    "deflate": answer(zlib.compress(b"ok"), "Content-Encoding: deflate"),
    "identity": answer(b"ok", "Content-Encoding: identity"),
}


@pytest.mark.parametrize("one", GOOD.values(), ids=GOOD)
async def test_whole_answers(one: bytes) -> None:
    async with answering(one) as (_, transport):
        assert await whole(transport) == (200, b"ok")


@pytest.mark.parametrize(
    "one", [b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\n\r\n", answer(b"")]
)
async def test_answers_without_a_body(one: bytes) -> None:
    async with answering(one) as (server, transport):
        assert (await whole(transport))[1] == b""
        assert (await whole(transport))[1] == b""
        assert server.opened == 1


@pytest.mark.parametrize("one", [GOOD["chunked"], GOOD["interim answers first"], GOOD["gzip"]])
async def test_bytes_may_come_one_by_one(one: bytes) -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        for at in range(len(one)):
            writer.write(one[at : at + 1])
            await writer.drain()
            await asyncio.sleep(0)

    async with serving(drip) as port:
        transport = Transport(f"http://127.0.0.1:{port}/", {})
        assert await whole(transport) == (200, b"ok")
        await transport.close()


BAD = {
    "no HTTP": (b"SSH-2.0-OpenSSH\r\n\r\n<end>", MalformedAnswer),
    "nothing": (b"<end>", ConnectionBroken),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-<end>", ConnectionBroken),
    "a head without end": (b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 20_000, MalformedAnswer),
    "a header without end": (b"HTTP/1.1 200 OK\r\nX-A: " + b"b" * 200_000, MalformedAnswer),
    "two lengths": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        MalformedAnswer,
    ),
    "another length": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
        MalformedAnswer,
    ),
    "junk behind it": (answer() + b"junk", MalformedAnswer),
    "a negative length": (b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok", MalformedAnswer),
    "another protocol": (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        MalformedAnswer,
    ),
    "cut in a body": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok<end>", AnswerCutOff),
    "cut between chunks": (chunked(b"ok", tail=b"<end>"), AnswerCutOff),
    "a chunk of no size": (chunked(b"ok", tail=b"zz\r\n"), MalformedAnswer),
    "trailers without end": (
        chunked(b"ok", tail=b"0\r\n" + b"X-A: b\r\n" * 150_000),
        MalformedAnswer,
    ),
}
UNDECODABLE = {
    "an encoding that was not asked for": (answer(b"ok", "Content-Encoding: br"), MalformedAnswer),
    "gzip that is none": (answer(b"ok", "Content-Encoding: gzip"), AnswerCutOff),
    "half of a gzip": (answer(gzip.compress(b"ok")[:-6], "Content-Encoding: gzip"), AnswerCutOff),
}


@pytest.mark.parametrize(("one", "error"), UNDECODABLE.values(), ids=UNDECODABLE)
async def test_a_body_that_cannot_be_decoded_fails_alone(
    one: bytes, error: type[Exception]
) -> None:
    async with answering(one, answer()) as (server, transport):
        with pytest.raises(error):
            await whole(transport)
        assert await whole(transport) == (200, b"ok")
        assert server.opened == 1, "its end was told well"


ENDLESS = {
    "interim answers without end": b"HTTP/1.1 100 Continue\r\n\r\n" * 5_000,
    "a chunk extension without end": chunked(b"ok", tail=b"2;" + b"a" * 1_000_000),
}


@pytest.mark.parametrize("one", ENDLESS.values(), ids=ENDLESS)
async def test_frames_without_content_end_with_the_deadline(one: bytes) -> None:
    async with answering(one, answer()) as (server, transport):
        with pytest.raises(TimedOut):
            await whole(transport, limit_s=1)
        assert await whole(transport) == (200, b"ok")
        assert server.opened == 2


@pytest.mark.parametrize(("one", "error"), BAD.values(), ids=BAD)
async def test_what_is_no_answer_fails_and_its_connection_is_not_used_again(
    one: bytes, error: type[Exception]
) -> None:
    async with answering(one, answer()) as (server, transport):
        async with asyncio.timeout(20):
            with pytest.raises(error) as raised:
                await whole(transport)
            assert type(raised.value) is error
            assert await whole(transport) == (200, b"ok")
        assert server.opened == 2


async def test_what_came_before_the_cut_is_given() -> None:
    async with answering(chunked(b"one", tail=b"<end>")) as (_, transport):
        exchange = await transport.post(b"{}", connect_s=5)
        assert await exchange.read() == b"one"
        with pytest.raises(AnswerCutOff):
            await exchange.read()
        assert not exchange.ended
        exchange.release()


async def test_the_request_on_the_wire() -> None:
    async with answering(answer()) as (server, transport):
        await whole(transport, b'{"a":1}')
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
        assert body == b'{"a":1}'
        assert head.split(b"\r\n")[0] == b"POST /v1/chat HTTP/1.1"
        lines = set(head.lower().split(b"\r\n")[1:])
        host = (
            b"host: 127.0.0.1:%d" % server.port
            if server.port
            else next(line for line in lines if line.startswith(b"host: 127.0.0.1:"))
        )
        assert lines == {
            host,
            b"accept: */*",
            b"accept-encoding: identity",
            b"authorization: bearer k",
            b"content-length: 7",
            b"content-type: application/json",
            b"user-agent: test",
        }


# --- connections
# ----------------------------------------------------------------------------------------------------


async def test_a_connection_is_used_again_and_the_last_used_first() -> None:
    async with answering(answer()) as (server, transport):
        await asyncio.gather(whole(transport), whole(transport), whole(transport))
        assert server.opened == 3
        for _ in range(20):
            await whole(transport)
        assert server.opened == 3


NOT_AGAIN = {
    "closed by its word": answer(b"ok", "Connection: close"),
    "a second answer behind the first": answer() + answer(b"injected"),
    "HTTP/1.0": GOOD["HTTP/1.0"],
}


@pytest.mark.parametrize("one", NOT_AGAIN.values(), ids=NOT_AGAIN)
async def test_a_connection_that_may_be_spoilt_is_not_used_again(one: bytes) -> None:
    async with answering(one, answer(b"mine")) as (server, transport):
        assert await whole(transport) == (200, b"ok")
        assert await whole(transport) == (200, b"mine")
        assert server.opened == 2


async def test_an_answer_that_nobody_asked_for_is_given_to_nobody() -> None:
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
            await asyncio.sleep(
                0.1
            )  # a byte that is still on its way cannot be told from an answer
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


async def test_a_call_that_is_given_up_closes_its_connection() -> None:
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


async def test_closing_the_pool_breaks_what_is_under_way() -> None:
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


async def test_an_answer_before_the_request_was_taken_is_an_answer_and_the_connection_is_left() -> (
    None
):
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


# --- bounds
# ---------------------------------------------------------------------------------------------------------


async def test_a_slow_reader_holds_the_sender_up() -> None:
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LIMIT)
        with contextlib.suppress(ConnectionError):
            for _ in range(LIMIT >> 16):
                writer.write(b"x" * (1 << 16))
                await writer.drain()
                sent += 1 << 16

    sent = 0
    async with serving(flood) as port:
        transport = Transport(f"http://127.0.0.1:{port}/", {})
        exchange = await transport.post(b"{}", connect_s=5)
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.3)
        assert sent < LIMIT // 2, "the rest waits on the other side"
        async with asyncio.timeout(30):
            assert len(await exchange.whole(LIMIT)) == LIMIT
        exchange.release()
        await transport.close()


async def test_a_body_over_the_bound_is_refused_while_it_comes() -> None:
    async with answering(answer(b"x" * 5_000_000)) as (_, transport):
        exchange = await transport.post(b"{}", connect_s=5)
        with pytest.raises(AnswerTooLarge):
            await exchange.whole(1_000_000)
        exchange.release()


async def test_a_decompression_bomb_is_met_piece_by_piece() -> None:
    bomb = gzip.compress(bytes(256 << 20), compresslevel=9)
    assert len(bomb) < 300_000
    async with answering(answer(bomb, "Content-Encoding: gzip")) as (_, transport):
        exchange = await transport.post(b"{}", connect_s=5)
        assert len(await exchange.read()) <= PIECE_BYTES
        with pytest.raises(AnswerTooLarge):
            await exchange.whole(8 << 20)
        exchange.release()


# --- connecting
# -----------------------------------------------------------------------------------------------------


async def test_a_refused_a_hanging_and_an_unknown_address() -> None:
    with refused_port() as port, pytest.raises(ConnectFailed):
        await Transport(f"http://127.0.0.1:{port}/", {}).post(b"", connect_s=5)
    with hanging_port() as port, pytest.raises(ConnectTimedOut):
        await Transport(f"http://127.0.0.1:{port}/", {}).post(b"", connect_s=0.2)
    with pytest.raises(ConnectFailed):
        await Transport("http://no-such-host.invalid/", {}).post(b"", connect_s=5)
    with pytest.raises(ConnectFailed):
        await Transport(f"http://{'a' * 70}.invalid/", {}).post(b"", connect_s=5)


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
            await Transport(url, {}).post(b"", connect_s=5)
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
        transport = Transport(f"http://127.0.0.1:{port}/", {"accept": "application/json"})
        await whole(transport)
        assert server.requests[0].lower().count(b"accept:") == 1
        await transport.close()
