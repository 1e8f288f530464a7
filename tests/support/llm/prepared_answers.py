"""Servers that send prepared bytes, and a transport that calls them."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from providers.transport import Transport

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
LIMIT = 64 << 20


@dataclass
class Server:
    """Answers each request with the next of `answers`, the last one for ever; counts connections
    and their ends.
    """

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
