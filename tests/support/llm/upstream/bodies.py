"""Behaviours of content: wrong, odd or gigantic bodies and frames."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from typing import Any

from tests.support.llm.upstream.behaviours import (
    answer,
    behaviour,
    body_bytes,
    send,
    split_after,
    truncated_json,
)
from tests.support.llm.upstream.exchange import UpstreamExchange


@behaviour
async def malformed_chunk(exchange: UpstreamExchange) -> None:
    """A broken event after `after` tokens, then, unless it is `last`, the rest."""
    if not exchange.stream:
        await truncated_json(exchange)
        return
    head, rest = split_after(exchange, 1)
    await exchange.start()
    await send(exchange, head)
    await exchange.write(
        b'data: {"id":"chatcmpl-local","choices":[{"index":0,"delta":{"content":"bro\n\n'
    )
    await send(exchange, [] if exchange.options.get("last") else rest)
    await exchange.done()
    await exchange.finish()


@behaviour
async def no_done(exchange: UpstreamExchange) -> None:
    """A whole stream without `[DONE]`.

    With `hold` the connection stays open, with `beat_s` it sends comments that often.
    """
    if not exchange.stream:
        await answer(exchange)
        return
    await exchange.start()
    await send(exchange, exchange.frames())
    while beat_s := exchange.seconds("beat_s", 0):
        await exchange.write(b": keep-alive\n\n")
        await asyncio.sleep(beat_s)
    if exchange.options.get("hold"):
        await exchange.hold()
    await exchange.finish()


@behaviour
async def chunks(exchange: UpstreamExchange) -> None:
    """The objects `chunks` as a stream, or `whole` as a whole body."""
    if not exchange.stream:
        await exchange.json(exchange.options["whole"])
        return
    await exchange.start()
    await send(exchange, exchange.options["chunks"])
    await exchange.done()
    await exchange.finish()


@behaviour
async def raw(exchange: UpstreamExchange) -> None:
    """The bytes of `pieces` with `status` (200), `content_type`, `headers`, `pause_s` (0) apart."""
    await exchange.start(
        exchange.options["content_type"], status=int(exchange.options.get("status", 200))
    )
    for piece in exchange.options["pieces"]:
        await exchange.write(piece)
        await asyncio.sleep(exchange.seconds("pause_s", 0))
    await exchange.finish()


@behaviour
async def no_finish_reason(exchange: UpstreamExchange) -> None:
    """Every token, usage and `[DONE]`, but no finish reason."""
    await answer(exchange, finish_reason=None)


@behaviour
async def error_in_stream(exchange: UpstreamExchange) -> None:
    """An `{"error": …}` event after `after` (1) tokens; as a whole body with status 200."""
    key = exchange.call.headers.get("authorization", "")
    error = {
        "error": {
            "message": f"The server had an error ({key})",
            "type": "server_error",
            "param": None,
            "code": None,
        }
    }
    error["error"].update(exchange.options.get("error") or {})
    if not exchange.stream:
        await exchange.json(error)
        return
    await exchange.start()
    await send(exchange, split_after(exchange, 1)[0])
    await exchange.event(error)
    await exchange.finish()


@behaviour
async def html(exchange: UpstreamExchange) -> None:
    """A web page with status `status` (200)."""
    page = (
        b"<!DOCTYPE html><html><head><title>Login</title></head>"
        b"<body><h1>Welcome to nginx</h1></body></html>"
    )
    await exchange.body(
        page,
        status=int(exchange.options.get("status", 200)),
        content_type="text/html; charset=utf-8",
    )


_NO_MESSAGE: dict[str, Any] = {"choices": [{"index": 0, "finish_reason": "stop"}]}
WRONG_SHAPES: dict[str, Any] = {
    "no_choices": {"id": "chatcmpl-local", "object": "chat.completion"},
    "empty_choices": {"choices": []},
    "null_choices": {"choices": None},
    "text_choices": {"choices": "none"},
    "null_choice": {"choices": [None]},
    "no_message": _NO_MESSAGE,
    "null_content": {
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": None}, "finish_reason": "stop"}
        ]
    },
    "number_content": {
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": 42}, "finish_reason": "stop"}
        ]
    },
    "list": [1, 2, 3],
    "string": "ok",
    "null_body": None,
    "number": 7,
}


@behaviour
async def wrong_shape(exchange: UpstreamExchange) -> None:
    """JSON that is no completion; `kind` is a key of `WRONG_SHAPES`.

    A stream holds it as its only event.
    """
    body = WRONG_SHAPES[exchange.options.get("kind", "no_choices")]
    if not exchange.stream:
        await exchange.json(body)
        return
    await exchange.start()
    await exchange.event(json.loads(json.dumps(body).replace('"message"', '"delta"')))
    await exchange.done()
    await exchange.finish()


@behaviour
async def gigantic(exchange: UpstreamExchange) -> None:
    """`megabytes` (200) of answer: one JSON text, many deltas, or with `one_line` one SSE line."""
    block = b"x" * 65_536
    count = int(float(exchange.options.get("megabytes", 200)) * 16)
    before, after = b"", b""
    if not exchange.stream or exchange.options.get("one_line"):
        before = (
            b"data: " if exchange.stream else b""
        ) + b'{"choices":[{"index":0,"delta":{"content":"'
        before = before if exchange.stream else before.replace(b"delta", b"message")
        after = b'"},"finish_reason":"stop"}]}\n\n'
    else:
        block = (
            b'data: {"choices":[{"index":0,"delta":{"content":"'
            + block
            + b'"},"finish_reason":null}]}\n\n'
        )
    await exchange.start("text/event-stream" if exchange.stream else "application/json")
    await exchange.write(before) if before else None
    for _ in range(count):
        await exchange.write(block)
        await asyncio.sleep(0)
    await exchange.write(after) if after else None
    await exchange.finish()


@behaviour
async def gzip_body(exchange: UpstreamExchange) -> None:
    """The regular body, compressed in `members` (1).

    `megabytes` of white space before it make it a bomb, `tail` is text after it.
    """
    padding = b" " * int(float(exchange.options.get("megabytes", 0)) * 1_048_576)
    plain, members = (
        body_bytes(exchange) if exchange.stream else padding + body_bytes(exchange),
        int(exchange.options.get("members", 1)),
    )
    size = -(-len(plain) // members)
    data = b"".join(
        gzip.compress(plain[start : start + size]) for start in range(0, len(plain), size)
    )
    data += str(exchange.options.get("tail", "")).encode()
    content_type = "text/event-stream" if exchange.stream else "application/json"
    await exchange.body(data, content_type=content_type, headers={"Content-Encoding": "gzip"})


async def _framed(
    exchange: UpstreamExchange,
    encode: Callable[[str], bytes],
    *,
    prefix: bytes = b"",
    **defaults: Any,
) -> None:
    """A stream whose events `encode` writes; else the regular answer after `prefix`."""
    if not exchange.stream:
        await exchange.body(prefix + body_bytes(exchange, **defaults))
        return
    await exchange.start()
    await exchange.write(prefix) if prefix else None
    for chunk in exchange.frames(**defaults):
        await exchange.write(encode(json.dumps(chunk, ensure_ascii=False)))
    await exchange.write(encode("[DONE]"))
    await exchange.finish()


@behaviour
async def crlf(exchange: UpstreamExchange) -> None:
    """CRLF line ends, each in a write of its own."""
    if not exchange.stream:
        await answer(exchange)
        return
    await exchange.start()
    for text in [*(json.dumps(chunk) for chunk in exchange.frames()), "[DONE]"]:
        for piece in (f"data: {text}\r".encode(), b"\n\r", b"\n"):
            await exchange.write(piece)
            await asyncio.sleep(0)
    await exchange.finish()


@behaviour
async def multiline_data(exchange: UpstreamExchange) -> None:
    """Events with several `data:` lines, among `event:`, `id:` and `retry:` fields."""

    def encode(text: str) -> bytes:
        lines = (
            json.dumps(json.loads(text), indent=1).split("\n") if text.startswith("{") else [text]
        )
        return (
            "event: message\nid: 1\nretry: 10\n"
            + "".join(f"data: {line}\n" for line in lines)
            + "\n"
        ).encode()

    await _framed(exchange, encode)


@behaviour
async def no_space(exchange: UpstreamExchange) -> None:
    """`data:` without the space behind it."""
    await _framed(exchange, lambda text: f"data:{text}\n\n".encode())


@behaviour
async def bom(exchange: UpstreamExchange) -> None:
    """A byte order mark before everything."""
    await _framed(exchange, lambda text: f"data: {text}\n\n".encode(), prefix=b"\xef\xbb\xbf")


@behaviour
async def long_line(exchange: UpstreamExchange) -> None:
    """One token of `kilobytes` (512)."""
    text = "я" * (int(exchange.options.get("kilobytes", 512)) * 512)
    await answer(exchange, text=text)
