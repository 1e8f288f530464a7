"""A fast upstream: canned OpenAI answers over a bare asyncio protocol.

    python -m benchmarks.llm.mock_upstream [--tokens 16] [--interval-ms 5]      prints its base URL

`POST …/chat/completions` answers whole or, where the body says `"stream":true`, token by token. A
body holds `Call <run>-…`; `GET /count/<run>` returns how many calls of that run arrived, and how
many different bodies they had.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any, cast

import uvloop

MODEL = "mock-model"
TEXT = "Київ — столиця України. " * 8
USAGE = {"prompt_tokens": 42, "completion_tokens": 48, "total_tokens": 90}


def _completion() -> bytes:
    message = {"role": "assistant", "content": TEXT}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = {
        "id": "chatcmpl-mock",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [choice],
        "usage": USAGE,
    }
    return json.dumps(body, ensure_ascii=False).encode()


def _head(status: str, content_type: str, length: int | None) -> bytes:
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n{framing}\r\n\r\n".encode()


def _http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _event(choices: list[dict[str, Any]], **more: Any) -> bytes:
    body = {
        "id": "chatcmpl-mock",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": MODEL,
        "choices": choices,
        **more,
    }
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def _json(status: str, body: bytes) -> bytes:
    return _head(status, "application/json", len(body)) + body


WHOLE = _json("200 OK", _completion())
NOT_FOUND = _json("404 Not Found", b"{}")
STREAM_HEAD = _head("200 OK", "text/event-stream", None)
TOKEN = _http_chunk(_event([{"index": 0, "delta": {"content": "слово "}, "finish_reason": None}]))
STREAM_TAIL = (
    _http_chunk(
        _event([{"index": 0, "delta": {}, "finish_reason": "stop"}])
        + _event([], usage=USAGE)
        + b"data: [DONE]\n\n"
    )
    + b"0\r\n\r\n"
)


class Counter:
    """What arrived so far, by run."""

    def __init__(self) -> None:
        self._calls: dict[bytes, int] = {}
        self._bodies: dict[bytes, set[int]] = {}

    def add(self, body: bytes) -> None:
        """Counts one call."""
        start = body.find(b"Call ") + 5
        run = body[start : body.find(b"-", start)]
        self._calls[run] = self._calls.get(run, 0) + 1
        self._bodies.setdefault(run, set()).add(hash(body))

    def answer(self, run: bytes) -> bytes:
        """Returns the answer to `GET /count/<run>`."""
        count = {
            "calls": self._calls.get(run, 0),
            "different_bodies": len(self._bodies.get(run, ())),
        }
        return _json("200 OK", json.dumps(count).encode())


class MockProtocol(asyncio.Protocol):
    """One connection. Requests need a Content-Length, as every client here sends it."""

    def __init__(self, counter: Counter, tokens: int, interval_s: float) -> None:
        self._counter = counter
        self._tokens = tokens
        self._interval_s = interval_s
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's own class does not derive from asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # of the base
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._buffer = buffer = self._buffer + data if self._buffer else data
        while (end := buffer.find(b"\r\n\r\n")) >= 0:
            head = buffer[:end].lower()
            total = end + 4 + _content_length(head)
            if len(buffer) < total:
                break
            self._answer(head, buffer[end + 4 : total])
            buffer = buffer[total:]
        self._buffer = buffer

    def _answer(self, head: bytes, body: bytes) -> None:
        assert self._transport is not None
        if head.startswith(b"post"):
            self._counter.add(body)
            if b'"stream":true' in body or b'"stream": true' in body:
                self._stream()
            else:
                self._transport.write(WHOLE)
        else:
            path = head.split(b" ", 2)[1]
            self._transport.write(
                self._counter.answer(path[7:]) if path.startswith(b"/count/") else NOT_FOUND
            )

    def _stream(self) -> None:
        assert self._transport is not None
        self._transport.write(STREAM_HEAD + TOKEN)
        self._later(self._tokens - 1)

    def _later(self, left: int) -> None:
        asyncio.get_running_loop().call_later(self._interval_s, self._next, left)

    def _next(self, left: int) -> None:
        if self._transport is None:
            return
        if left <= 0:
            self._transport.write(STREAM_TAIL)
            return
        self._transport.write(TOKEN)
        self._later(left - 1)


def _content_length(head: bytes) -> int:
    start = head.find(b"\r\ncontent-length:")
    if start < 0:
        return 0
    end = head.find(b"\r\n", start + 2)
    return int(head[start + 17 : end if end >= 0 else None])


async def serve(port: int, tokens: int, interval_s: float) -> None:
    """Serves until cancelled; prints the base URL once it listens."""
    counter = Counter()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: MockProtocol(counter, tokens, interval_s), "127.0.0.1", port, backlog=2048
    )
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--interval-ms", type=float, default=5.0)
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.port, arguments.tokens, arguments.interval_ms / 1000))
