"""A tool server that misbehaves, one behaviour per path; records its calls and connections."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

Behaviour = Callable[["ToolServer", "Call", asyncio.StreamWriter], Awaitable[None]]
GIB = 1 << 30
BOMB = gzip.compress(b'"' + b"0" * (32 << 20) + b'"', 6)


@dataclass
class Call:
    path: str
    headers: dict[str, str]
    body: Any
    connection: int


@dataclass
class ToolServer:
    """`script` overrules the behaviours: statuses to answer one after the other, then 200."""

    calls: list[Call] = field(default_factory=list)
    connections: int = 0
    open_connections: int = 0
    bytes_sent: int = 0
    statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    answer: Any = field(default_factory=lambda: [{"id": 1}])
    port: int = 0

    async def __aenter__(self) -> ToolServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self._writers: set[asyncio.StreamWriter] = set()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await self.wait_closed()

    async def wait_closed(self, timeout_s: float = 30) -> None:
        """Waits until no client holds a connection. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while self.open_connections:
                await asyncio.sleep(0.01)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open_connections += 1
        self._writers.add(writer)
        number = self.connections
        try:
            while True:
                call = await _read(reader, number)
                self.calls.append(call)
                gone = asyncio.ensure_future(_until_gone(reader))
                work = asyncio.ensure_future(
                    _BEHAVIOURS[call.path.partition("?")[0]](self, call, writer)
                )
                await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
                for task in (gone, work):
                    task.cancel()
                await asyncio.gather(gone, work, return_exceptions=True)
                if (
                    writer.transport.is_closing()
                    or not work.done()
                    or work.cancelled()
                    or work.exception()
                ):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open_connections -= 1
            self._writers.discard(writer)
            writer.close()

    async def send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(data)
        await writer.drain()
        self.bytes_sent += len(data)


async def _read(reader: asyncio.StreamReader, number: int) -> Call:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    start, *lines = head.rstrip("\r\n").split("\r\n")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Call(start.split(" ")[1], headers, json.loads(body) if body else None, number)


async def _until_gone(reader: asyncio.StreamReader) -> None:
    await reader.read(1)  # a client that waits for its answer sends nothing more


def _response(status: int, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    lines = [
        f"HTTP/1.1 {status} X",
        f"Content-Length: {len(body)}",
        "Content-Type: application/json",
    ]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _body(text: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Behaviour:
    async def behave(server: ToolServer, _call: Call, writer: asyncio.StreamWriter) -> None:
        await server.send(writer, _response(status, text, headers))

    return behave


async def _ok(server: ToolServer, _call: Call, writer: asyncio.StreamWriter) -> None:
    status, headers = server.statuses.pop(0) if server.statuses else (200, {})
    await server.send(writer, _response(status, json.dumps(server.answer).encode(), headers))


async def _ok_and_close(server: ToolServer, call: Call, writer: asyncio.StreamWriter) -> None:
    """Closes the connection behind its answer without having said so."""
    await _ok(server, call, writer)
    writer.close()


async def _echo(server: ToolServer, call: Call, writer: asyncio.StreamWriter) -> None:
    await server.send(
        writer, _response(200, json.dumps({"headers": call.headers, "body": call.body}).encode())
    )


async def _silent(_server: ToolServer, _call: Call, _writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def _drip(server: ToolServer, _call: Call, writer: asyncio.StreamWriter) -> None:
    await server.send(
        writer,
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 50000\r\n\r\n[",
    )
    for _ in range(1_000):
        await server.send(writer, b" ")
        await asyncio.sleep(0.02)


async def _drip_headers(server: ToolServer, _call: Call, writer: asyncio.StreamWriter) -> None:
    await server.send(writer, b"HTTP/1.1 200 OK\r\n")
    for number in range(1_000):
        await server.send(writer, b"X-%d: 1\r\n" % number)
        await asyncio.sleep(0.05)


async def _endless_headers(server: ToolServer, _call: Call, writer: asyncio.StreamWriter) -> None:
    await server.send(writer, b"HTTP/1.1 200 OK\r\n")
    for number in range(200_000):
        await server.send(writer, b"X-%d: %s\r\n" % (number, b"v" * 1_000))


async def _endless_continue(server: ToolServer, _call: Call, writer: asyncio.StreamWriter) -> None:
    for _ in range(20_000):
        await server.send(writer, b"HTTP/1.1 102 Processing\r\n\r\n")
        await asyncio.sleep(0.001)


async def _gigabyte(server: ToolServer, _call: Call, writer: asyncio.StreamWriter) -> None:
    await server.send(
        writer,
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
    )
    piece = b"10000\r\n" + b"[" * 0x10000 + b"\r\n"
    for _ in range(GIB // 0x10000):
        await server.send(writer, piece)


async def _announced_gigabyte(
    server: ToolServer, _call: Call, writer: asyncio.StreamWriter
) -> None:
    await server.send(
        writer,
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n[" % GIB,
    )
    await asyncio.sleep(60)


async def _bomb(server: ToolServer, _call: Call, writer: asyncio.StreamWriter) -> None:
    await server.send(writer, _response(200, BOMB, {"Content-Encoding": "gzip"}))


async def _empty_members(server: ToolServer, _call: Call, writer: asyncio.StreamWriter) -> None:
    """Compressed members without content behind the answer, for ever."""
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    await server.send(writer, head + b"17\r\n" + gzip.compress(b"[1]") + b"\r\n")
    members = gzip.compress(b"") * 3_000
    for _ in range(GIB // len(members)):
        await server.send(writer, b"%x\r\n%s\r\n" % (len(members), members))


async def _cut(server: ToolServer, _call: Call, writer: asyncio.StreamWriter) -> None:
    await server.send(
        writer,
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nContent-Type: application/json\r\n\r\n[1, 2",
    )
    writer.close()


async def _hang_up(_server: ToolServer, _call: Call, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def _hang_up_once(server: ToolServer, call: Call, writer: asyncio.StreamWriter) -> None:
    if sum(seen.path == call.path for seen in server.calls) == 1:
        writer.transport.abort()
    else:
        await _ok(server, call, writer)


async def _nonsense(server: ToolServer, _call: Call, writer: asyncio.StreamWriter) -> None:
    await server.send(writer, b"SSH-2.0-OpenSSH_9.2\r\n\x00\x01\x02\r\n\r\n")
    writer.close()


async def _redirect(server: ToolServer, _call: Call, writer: asyncio.StreamWriter) -> None:
    await server.send(
        writer, _response(307, b"", {"Location": f"http://127.0.0.1:{server.port}/ok"})
    )


async def _cookie(server: ToolServer, _call: Call, writer: asyncio.StreamWriter) -> None:
    await server.send(writer, _response(200, b"1", {"Set-Cookie": "session=tenant-a; Path=/"}))


_BEHAVIOURS: dict[str, Behaviour] = {
    "/ok": _ok,
    "/ok-and-close": _ok_and_close,
    "/echo": _echo,
    "/silent": _silent,
    "/drip": _drip,
    "/drip-headers": _drip_headers,
    "/endless-headers": _endless_headers,
    "/endless-continue": _endless_continue,
    "/gigabyte": _gigabyte,
    "/announced-gigabyte": _announced_gigabyte,
    "/bomb": _bomb,
    "/cut": _cut,
    "/hang-up": _hang_up,
    "/hang-up-once": _hang_up_once,
    "/nonsense": _nonsense,
    "/redirect": _redirect,
    "/cookie": _cookie,
    "/gzip": _body(gzip.compress(b"[1]"), headers={"Content-Encoding": "gzip"}),
    "/gzip-members": _body(
        gzip.compress(b"[1,") + gzip.compress(b"") + gzip.compress(b"2]"),
        headers={"Content-Encoding": "gzip"},
    ),
    "/gzip-and-more": _body(
        gzip.compress(b"[1]") + b"no member", headers={"Content-Encoding": "gzip"}
    ),
    "/second-bomb": _body(gzip.compress(b"[1]") + BOMB, headers={"Content-Encoding": "gzip"}),
    "/empty-members": _empty_members,
    "/brotli": _body(b"\x0b\x02\x80[1]\x03", headers={"Content-Encoding": "br"}),
    "/broken-gzip": _body(b"no gzip", headers={"Content-Encoding": "gzip"}),
    "/invalid-json": _body(b"{'ok': True}"),
    "/nan": _body(b"[NaN]"),
    "/latin1": _body(b'"\xe9"'),
    "/empty": _body(b""),
    "/deep": _body(b"[" * 100_000 + b"]" * 100_000),
    "/html": _body(b"<html>login</html>"),
    "/refused": _body(b'{"detail": "due_date lies in the past"}', status=422),
    "/defect": _body(b'{"error": "Traceback: /srv/app.py line 3, password=hunter2"}', status=500),
}
