"""Publishes `usage.llm` messages on NATS.

A server that hangs gets nothing more until it answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

import nats.errors
import orjson
from nats.aio.client import Client

from backends.nats.link import NatsLink
from contracts.errors import Unavailable
from contracts.llm.usage import usage_message

LLM_USAGE_SUBJECT = "usage.llm"
ID_HEADER = "Nats-Msg-Id"
FLUSH_TIMEOUT_S = 1
MAX_PENDING_BYTES = 1_000_000
"""Bytes that may wait in the client. Beyond twice that, the client would hold up its caller."""
MESSAGES_PER_TURN = 25
"""Messages after which other tasks of the event loop run: calls are served beside them."""


class NatsLLMUsage:
    """Implements UsagePublisher over one connection."""

    def __init__(self, link: NatsLink) -> None:
        self._link = link
        self._must_answer = False

    def check(self) -> None:
        """Raises Unavailable while there is no connection."""
        self._link.client()

    async def publish(self, calls: Iterable[Mapping[str, Any]]) -> None:
        """Returns once NATS has all messages; after a failure it has to answer before it gets more.

        Raises:
            Unavailable: it may have some of them, or none.
        """
        try:
            await self._publish(self._link.client(), calls)
        except (nats.errors.Error, TimeoutError, OSError) as error:
            self._must_answer = True
            raise Unavailable("NATS does not take usage messages") from error
        except Unavailable:
            self._must_answer = True
            raise
        self._must_answer = False

    async def _publish(self, client: Client, calls: Iterable[Mapping[str, Any]]) -> None:
        if self._must_answer:
            await client.flush(FLUSH_TIMEOUT_S)
        for number, call in enumerate(calls, start=1):
            if client.pending_data_size > MAX_PENDING_BYTES:
                raise Unavailable("too many bytes wait for NATS")
            await client.publish(
                LLM_USAGE_SUBJECT,
                orjson.dumps(usage_message(call), default=str),
                headers={ID_HEADER: str(call["id"])},
            )
            if number % MESSAGES_PER_TURN == 0:
                await asyncio.sleep(0)
        await client.flush(FLUSH_TIMEOUT_S)
