"""The catalogue of behaviours: answers, and ways of failing while answering.

Refusals are in `refusals.py`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from tests.support.llm.upstream.answers import completion, is_token
from tests.support.llm.upstream.exchange import UpstreamExchange

Behaviour = Callable[[UpstreamExchange], Awaitable[None]]
BEHAVIOURS: dict[str, Behaviour] = {}


def behaviour(function: Behaviour) -> Behaviour:
    """Registers a behaviour under its function's name."""
    BEHAVIOURS[function.__name__] = function
    return function


async def answer(exchange: UpstreamExchange, **defaults: Any) -> None:
    """Answers as asked, streaming or not.

    Options: see `answer_for`, `delay_s` between frames, `end_pause_s` behind `[DONE]`.
    """
    if not exchange.stream:
        await exchange.json(completion(exchange.answer(**defaults)))
        return
    await exchange.start()
    await send(exchange, exchange.frames(**defaults))
    await exchange.done()
    if pause := exchange.seconds("end_pause_s", 0):
        await asyncio.sleep(pause)
    await exchange.finish()


async def send(exchange: UpstreamExchange, chunks: list[dict[str, Any]]) -> None:
    delay = exchange.seconds("delay_s", 0)
    for chunk in chunks:
        await exchange.event(chunk)
        if delay:
            await asyncio.sleep(delay)


def split_after(
    exchange: UpstreamExchange, after: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Splits the frames behind the first `after` tokens (the option `after` wins)."""
    chunks = exchange.frames()
    left = int(exchange.options.get("after", after))
    for index, chunk in enumerate(chunks):
        if is_token(chunk):
            if left == 0:
                return chunks[:index], chunks[index:]
            left -= 1
    return chunks[:-1], chunks[-1:]


@behaviour
async def ok(exchange: UpstreamExchange) -> None:
    """A regular answer."""
    await answer(exchange)


@behaviour
async def tool_calls(exchange: UpstreamExchange) -> None:
    """Tool calls, `calls` (1): fragmented in streams unless `whole`; `no_index` omits the index."""
    await answer(exchange, calls=1)


@behaviour
async def reasoning(exchange: UpstreamExchange) -> None:
    """A thought before the answer, in the field `reasoning_field` (`reasoning_content`)."""
    await answer(exchange, reasoning="Спершу подумаю, потім відповім.")


@behaviour
async def no_usage(exchange: UpstreamExchange) -> None:
    await answer(exchange, usage="missing")


@behaviour
async def usage_in_final_chunk(exchange: UpstreamExchange) -> None:
    """Usage in a last chunk with empty choices, asked for or not."""
    await answer(exchange, usage="final")


@behaviour
async def usage_in_last_choice(exchange: UpstreamExchange) -> None:
    """Usage beside the finish reason."""
    await answer(exchange, usage="last_choice")


def body_bytes(exchange: UpstreamExchange, **defaults: Any) -> bytes:
    """The regular body as bytes."""
    if not exchange.stream:
        return json.dumps(completion(exchange.answer(**defaults)), ensure_ascii=False).encode()
    events = [
        f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
        for chunk in exchange.frames(**defaults)
    ]
    return "".join([*events, "data: [DONE]\n\n"]).encode()


@behaviour
async def truncated_json(exchange: UpstreamExchange) -> None:
    """A body that ends in the middle of its JSON."""
    data = json.dumps(completion(exchange.answer())).encode()
    await exchange.body(data[: len(data) * 2 // 3])
