"""The catalogue of behaviours: answers, and ways of failing while answering. Refusals are in `refusals.py`."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Awaitable, Callable
from typing import Any

from tests.support.llm.upstream.answers import UKRAINIAN, completion, is_token
from tests.support.llm.upstream.exchange import Exchange

Behaviour = Callable[[Exchange], Awaitable[None]]
BEHAVIOURS: dict[str, Behaviour] = {}


def behaviour(function: Behaviour) -> Behaviour:
    """Registers a behaviour under its function's name."""
    BEHAVIOURS[function.__name__] = function
    return function


async def answer(exchange: Exchange, **defaults: Any) -> None:
    """Answers as asked, streaming or not. Options: see `answer_for`, `delay_s` between frames, `end_pause_s` behind `[DONE]`."""
    if not exchange.stream:
        await exchange.json(completion(exchange.answer(**defaults)))
        return
    await exchange.start()
    await _send(exchange, exchange.frames(**defaults))
    await exchange.done()
    if pause := exchange.seconds("end_pause_s", 0):
        await asyncio.sleep(pause)
    await exchange.finish()


async def _send(exchange: Exchange, chunks: list[dict[str, Any]]) -> None:
    delay = exchange.seconds("delay_s", 0)
    for chunk in chunks:
        await exchange.event(chunk)
        if delay:
            await asyncio.sleep(delay)


def _head(exchange: Exchange, after: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Splits the frames behind the first `after` tokens (the option `after` wins)."""
    chunks = exchange.frames()
    left = int(exchange.options.get("after", after))
    for index, chunk in enumerate(chunks):
        if is_token(chunk):
            if left == 0:
                return chunks[:index], chunks[index:]
            left -= 1
    return chunks[:-1], chunks[-1:]


async def _half(exchange: Exchange) -> None:
    """Sends the head of a stream, or half of a body whose whole length was announced."""
    if exchange.stream:
        await exchange.start()
        await _send(exchange, _head(exchange, 2)[0])
        return
    data = json.dumps(completion(exchange.answer())).encode()
    await exchange.start("application/json", length=len(data))
    await exchange.write(data[: len(data) // 2])


@behaviour
async def ok(exchange: Exchange) -> None:
    """A regular answer."""
    await answer(exchange)


@behaviour
async def tool_calls(exchange: Exchange) -> None:
    """Tool calls: `calls` of them (1), fragmented in streams unless `whole`; `no_index` leaves the index out."""
    await answer(exchange, calls=1)


@behaviour
async def reasoning(exchange: Exchange) -> None:
    """A thought before the answer, in the field `reasoning_field` (`reasoning_content`)."""
    await answer(exchange, reasoning="Спершу подумаю, потім відповім.")


@behaviour
async def no_usage(exchange: Exchange) -> None:
    await answer(exchange, usage="missing")


@behaviour
async def usage_in_final_chunk(exchange: Exchange) -> None:
    """Usage in a last chunk with empty choices, asked for or not."""
    await answer(exchange, usage="final")


@behaviour
async def usage_in_last_choice(exchange: Exchange) -> None:
    """Usage beside the finish reason."""
    await answer(exchange, usage="last_choice")


@behaviour
async def reset_before_headers(exchange: Exchange) -> None:
    await exchange.drop(reset=True)


@behaviour
async def close_before_headers(exchange: Exchange) -> None:
    await exchange.drop()


@behaviour
async def reset_mid_body(exchange: Exchange) -> None:
    """RST after `after` tokens, or half a body."""
    await _half(exchange)
    await exchange.drop(reset=True)


@behaviour
async def cut(exchange: Exchange) -> None:
    """FIN after `after` tokens without the end of the chunked body, or half a body."""
    await _half(exchange)
    await exchange.drop()


@behaviour
async def stall(exchange: Exchange) -> None:
    """Stops after `after` tokens, or half a body, and holds the connection."""
    await _half(exchange)
    await exchange.hold()


@behaviour
async def cut_clean(exchange: Exchange) -> None:
    """Ends the stream in an orderly way, but before its finish reason; a whole body is truncated JSON."""
    if not exchange.stream:
        await truncated_json(exchange)
        return
    await _half(exchange)
    await exchange.finish()


@behaviour
async def silence(exchange: Exchange) -> None:
    """Takes the request and never answers."""
    await exchange.hold()


@behaviour
async def slow(exchange: Exchange) -> None:
    """Waits `wait_s` (1) before the headers."""
    await asyncio.sleep(exchange.seconds("wait_s", 1))
    await answer(exchange)


@behaviour
async def slow_first_token(exchange: Exchange) -> None:
    """Sends headers (and the role) at once, everything else after `wait_s` (1)."""
    wait_s = exchange.seconds("wait_s", 1)
    if exchange.stream:
        head, rest = _head(exchange, 0)
        await exchange.start()
        await _send(exchange, head)
        await asyncio.sleep(wait_s)
        await _send(exchange, rest)
        await exchange.done()
    else:
        await exchange.start("application/json")
        await asyncio.sleep(wait_s)
        await exchange.write(json.dumps(completion(exchange.answer())).encode())
    await exchange.finish()


async def _beat(exchange: Exchange, frame: bytes) -> None:
    """Sends `frame` every `interval_s` (0.05) for ever, or `count` times and then the answer."""
    await exchange.start("text/event-stream" if exchange.stream else "application/json")
    count = exchange.options.get("count")
    while count is None or count > 0:
        await exchange.write(frame if exchange.stream else b"\n")
        await asyncio.sleep(exchange.seconds("interval_s", 0.05))
        count = None if count is None else count - 1
    if exchange.stream:
        await _send(exchange, exchange.frames())
        await exchange.done()
    else:
        await exchange.write(json.dumps(completion(exchange.answer())).encode())
    await exchange.finish()


@behaviour
async def keepalive(exchange: Exchange) -> None:
    """Comment frames only (empty lines where nothing is streamed); see `_beat`."""
    await _beat(exchange, b": keep-alive\n\n")


@behaviour
async def role_only(exchange: Exchange) -> None:
    """Deltas with a role and no content only; see `_beat`."""
    first = exchange.frames()[0] if exchange.stream else {}
    await _beat(exchange, b"data: " + json.dumps(first).encode() + b"\n\n")


@behaviour
async def drip(exchange: Exchange) -> None:
    """The regular bytes, `piece` (1) at a time every `interval_s` (0.01)."""
    await _in_pieces(
        exchange,
        _bytes_of(exchange),
        int(exchange.options.get("piece", 1)),
        exchange.seconds("interval_s", 0.01),
    )


@behaviour
async def utf8_split(exchange: Exchange) -> None:
    """Ukrainian text in pieces of `piece` (1) bytes, so that every character is torn apart."""
    data = _bytes_of(exchange, text=UKRAINIAN)
    await _in_pieces(exchange, data, int(exchange.options.get("piece", 1)), 0)


async def _in_pieces(exchange: Exchange, data: bytes, size: int, interval_s: float) -> None:
    await exchange.start(
        "text/event-stream" if exchange.stream else "application/json; charset=utf-8"
    )
    for start in range(0, len(data), size):
        await exchange.write(data[start : start + size])
        await asyncio.sleep(interval_s)
    await exchange.finish()


def _bytes_of(exchange: Exchange, **defaults: Any) -> bytes:
    """The regular body as bytes."""
    if not exchange.stream:
        return json.dumps(completion(exchange.answer(**defaults)), ensure_ascii=False).encode()
    events = [
        f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
        for chunk in exchange.frames(**defaults)
    ]
    return "".join([*events, "data: [DONE]\n\n"]).encode()


@behaviour
async def malformed_chunk(exchange: Exchange) -> None:
    """A broken event after `after` tokens, then the rest unless it is the `last`; a whole body is truncated JSON."""
    if not exchange.stream:
        await truncated_json(exchange)
        return
    head, rest = _head(exchange, 1)
    await exchange.start()
    await _send(exchange, head)
    await exchange.write(
        b'data: {"id":"chatcmpl-local","choices":[{"index":0,"delta":{"content":"bro\n\n'
    )
    await _send(exchange, [] if exchange.options.get("last") else rest)
    await exchange.done()
    await exchange.finish()


@behaviour
async def no_done(exchange: Exchange) -> None:
    """A whole stream whose `[DONE]` is missing; with `hold` the connection stays open, with `beat_s` it tells so that often."""
    if not exchange.stream:
        await answer(exchange)
        return
    await exchange.start()
    await _send(exchange, exchange.frames())
    while beat_s := exchange.seconds("beat_s", 0):
        await exchange.write(b": keep-alive\n\n")
        await asyncio.sleep(beat_s)
    if exchange.options.get("hold"):
        await exchange.hold()
    await exchange.finish()


@behaviour
async def chunks(exchange: Exchange) -> None:
    """The objects `chunks` as a stream, or `whole` as a whole body."""
    if not exchange.stream:
        await exchange.json(exchange.options["whole"])
        return
    await exchange.start()
    await _send(exchange, exchange.options["chunks"])
    await exchange.done()
    await exchange.finish()


@behaviour
async def raw(exchange: Exchange) -> None:
    """The bytes of `pieces`, a write each and `pause_s` (0) between them, with `status` (200), `content_type` and `headers`."""
    await exchange.start(
        exchange.options["content_type"], status=int(exchange.options.get("status", 200))
    )
    for piece in exchange.options["pieces"]:
        await exchange.write(piece)
        await asyncio.sleep(exchange.seconds("pause_s", 0))
    await exchange.finish()


@behaviour
async def no_finish_reason(exchange: Exchange) -> None:
    """Every token, usage and `[DONE]`, but no finish reason."""
    await answer(exchange, finish_reason=None)


@behaviour
async def error_in_stream(exchange: Exchange) -> None:
    """An `{"error": …}` event after `after` (1) tokens; a whole body is the same object with status 200."""
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
    await _send(exchange, _head(exchange, 1)[0])
    await exchange.event(error)
    await exchange.finish()


@behaviour
async def html(exchange: Exchange) -> None:
    """A web page with status `status` (200)."""
    page = b"<!DOCTYPE html><html><head><title>Login</title></head><body><h1>Welcome to nginx</h1></body></html>"
    await exchange.body(
        page,
        status=int(exchange.options.get("status", 200)),
        content_type="text/html; charset=utf-8",
    )


@behaviour
async def truncated_json(exchange: Exchange) -> None:
    """A body that ends in the middle of its JSON."""
    data = json.dumps(completion(exchange.answer())).encode()
    await exchange.body(data[: len(data) * 2 // 3])


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
async def wrong_shape(exchange: Exchange) -> None:
    """JSON that is no completion; `kind` is a key of `WRONG_SHAPES`. A stream holds it as its only event."""
    body = WRONG_SHAPES[exchange.options.get("kind", "no_choices")]
    if not exchange.stream:
        await exchange.json(body)
        return
    await exchange.start()
    await exchange.event(json.loads(json.dumps(body).replace('"message"', '"delta"')))
    await exchange.done()
    await exchange.finish()


@behaviour
async def gigantic(exchange: Exchange) -> None:
    """`megabytes` (200) of answer: one JSON text, many deltas, or with `one_line` a single SSE line."""
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
async def gzip_body(exchange: Exchange) -> None:
    """The regular body, compressed in `members` (1); `megabytes` of white space before it make it a bomb, `tail` is text behind it."""
    padding = b" " * int(float(exchange.options.get("megabytes", 0)) * 1_048_576)
    plain, members = (
        _bytes_of(exchange) if exchange.stream else padding + _bytes_of(exchange),
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
    exchange: Exchange, encode: Callable[[str], bytes], *, prefix: bytes = b"", **defaults: Any
) -> None:
    """A stream whose events are written by `encode`; not streaming, the regular answer behind `prefix`."""
    if not exchange.stream:
        await exchange.body(prefix + _bytes_of(exchange, **defaults))
        return
    await exchange.start()
    await exchange.write(prefix) if prefix else None
    for chunk in exchange.frames(**defaults):
        await exchange.write(encode(json.dumps(chunk, ensure_ascii=False)))
    await exchange.write(encode("[DONE]"))
    await exchange.finish()


@behaviour
async def crlf(exchange: Exchange) -> None:
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
async def multiline_data(exchange: Exchange) -> None:
    """Events whose JSON is spread over several `data:` lines, among `event:`, `id:` and `retry:` fields."""

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
async def no_space(exchange: Exchange) -> None:
    """`data:` without the space behind it."""
    await _framed(exchange, lambda text: f"data:{text}\n\n".encode())


@behaviour
async def bom(exchange: Exchange) -> None:
    """A byte order mark before everything."""
    await _framed(exchange, lambda text: f"data: {text}\n\n".encode(), prefix=b"\xef\xbb\xbf")


@behaviour
async def long_line(exchange: Exchange) -> None:
    """One token of `kilobytes` (512)."""
    text = "я" * (int(exchange.options.get("kilobytes", 512)) * 512)
    await answer(exchange, text=text)
