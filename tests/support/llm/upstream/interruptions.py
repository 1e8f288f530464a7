"""Behaviours of timing: connections that break, stall or are slow."""

from __future__ import annotations

import asyncio
import json

from tests.support.llm.upstream.answers import UKRAINIAN, completion
from tests.support.llm.upstream.behaviours import (
    answer,
    behaviour,
    body_bytes,
    send,
    split_after,
    truncated_json,
)
from tests.support.llm.upstream.exchange import UpstreamExchange


async def _half(exchange: UpstreamExchange) -> None:
    """Sends the head of a stream, or half of a body whose whole length was announced."""
    if exchange.stream:
        await exchange.start()
        await send(exchange, split_after(exchange, 2)[0])
        return
    data = json.dumps(completion(exchange.answer())).encode()
    await exchange.start("application/json", length=len(data))
    await exchange.write(data[: len(data) // 2])


@behaviour
async def reset_before_headers(exchange: UpstreamExchange) -> None:
    await exchange.drop(reset=True)


@behaviour
async def close_before_headers(exchange: UpstreamExchange) -> None:
    await exchange.drop()


@behaviour
async def reset_mid_body(exchange: UpstreamExchange) -> None:
    """RST after `after` tokens, or half a body."""
    await _half(exchange)
    await exchange.drop(reset=True)


@behaviour
async def cut(exchange: UpstreamExchange) -> None:
    """FIN after `after` tokens without the end of the chunked body, or half a body."""
    await _half(exchange)
    await exchange.drop()


@behaviour
async def stall(exchange: UpstreamExchange) -> None:
    """Stops after `after` tokens, or half a body, and holds the connection."""
    await _half(exchange)
    await exchange.hold()


@behaviour
async def cut_clean(exchange: UpstreamExchange) -> None:
    """Ends the stream in order, but before its finish reason; a whole body is truncated JSON."""
    if not exchange.stream:
        await truncated_json(exchange)
        return
    await _half(exchange)
    await exchange.finish()


@behaviour
async def silence(exchange: UpstreamExchange) -> None:
    """Takes the request and never answers."""
    await exchange.hold()


@behaviour
async def slow(exchange: UpstreamExchange) -> None:
    """Waits `wait_s` (1) before the headers."""
    await asyncio.sleep(exchange.seconds("wait_s", 1))
    await answer(exchange)


@behaviour
async def slow_first_token(exchange: UpstreamExchange) -> None:
    """Sends headers (and the role) at once, everything else after `wait_s` (1)."""
    wait_s = exchange.seconds("wait_s", 1)
    if exchange.stream:
        head, rest = split_after(exchange, 0)
        await exchange.start()
        await send(exchange, head)
        await asyncio.sleep(wait_s)
        await send(exchange, rest)
        await exchange.done()
    else:
        await exchange.start("application/json")
        await asyncio.sleep(wait_s)
        await exchange.write(json.dumps(completion(exchange.answer())).encode())
    await exchange.finish()


async def _beat(exchange: UpstreamExchange, frame: bytes) -> None:
    """Sends `frame` every `interval_s` (0.05) without end, or `count` times and then the answer."""
    await exchange.start("text/event-stream" if exchange.stream else "application/json")
    count = exchange.options.get("count")
    while count is None or count > 0:
        await exchange.write(frame if exchange.stream else b"\n")
        await asyncio.sleep(exchange.seconds("interval_s", 0.05))
        count = None if count is None else count - 1
    if exchange.stream:
        await send(exchange, exchange.frames())
        await exchange.done()
    else:
        await exchange.write(json.dumps(completion(exchange.answer())).encode())
    await exchange.finish()


@behaviour
async def keepalive(exchange: UpstreamExchange) -> None:
    """Comment frames only (empty lines where nothing is streamed); see `_beat`."""
    await _beat(exchange, b": keep-alive\n\n")


@behaviour
async def role_only(exchange: UpstreamExchange) -> None:
    """Deltas with a role and no content only; see `_beat`."""
    first = exchange.frames()[0] if exchange.stream else {}
    await _beat(exchange, b"data: " + json.dumps(first).encode() + b"\n\n")


@behaviour
async def drip(exchange: UpstreamExchange) -> None:
    """The regular bytes, `piece` (1) at a time every `interval_s` (0.01)."""
    await _in_pieces(
        exchange,
        body_bytes(exchange),
        int(exchange.options.get("piece", 1)),
        exchange.seconds("interval_s", 0.01),
    )


@behaviour
async def utf8_split(exchange: UpstreamExchange) -> None:
    """Ukrainian text in pieces of `piece` (1) bytes, so that every character is torn apart."""
    data = body_bytes(exchange, text=UKRAINIAN)
    await _in_pieces(exchange, data, int(exchange.options.get("piece", 1)), 0)


async def _in_pieces(exchange: UpstreamExchange, data: bytes, size: int, interval_s: float) -> None:
    await exchange.start(
        "text/event-stream" if exchange.stream else "application/json; charset=utf-8"
    )
    for start in range(0, len(data), size):
        await exchange.write(data[start : start + size])
        await asyncio.sleep(interval_s)
    await exchange.finish()
