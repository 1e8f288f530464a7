"""Work in JetStream: a stream that keeps each message until a worker has acknowledged it, and one
for the messages that can never be served.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import BadRequestError, NotFoundError

from common import tracing

REASON_HEADER = "Daarion-Reason"
ERROR_HEADER = "Daarion-Error"
MAX_BYTES = 128 << 20
MAX_PARKED = 10_000
MAX_PARKED_BYTES = 64 << 20
KEEP_PARKED_S = 14 * 24 * 3_600.0
FETCH_S = 10.0
RETRY_S = 1.0
PUBLISH_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class QueueSettings:
    """Streams with their subjects, the durable consumer, and the bounds of waiting messages.

    `filtered`: the consumer names the subject, because another stream may hold it with others.
    """

    stream: str
    subject: str
    parked_stream: str
    parked_subject: str
    durable: str
    max_waiting: int
    keep_s: float
    ack_wait_s: float
    max_ack_pending: int
    filtered: bool = False
    keep_parked_s: float = KEEP_PARKED_S


class WorkQueue:
    """The queue over one connection. `failed` is called with each failure of fetching."""

    def __init__(self, settings: QueueSettings, failed: Callable[[Exception], None]) -> None:
        self._settings = settings
        self._failed = failed
        self._stream = settings.stream
        self._context: JetStreamContext | None = None

    async def prepare(self, client: Client) -> None:
        """Creates or updates both streams and the consumer; several replicas may do so at once.

        When another stream holds the subject already, the consumer is created there. Raises the
        client library's errors.
        """
        own, context = self._settings, client.jetstream()
        try:
            self._stream = await context.find_stream_name_by_subject(own.subject)
        except NotFoundError:
            self._stream = own.stream
        work = StreamConfig(
            name=own.stream,
            subjects=[own.subject],
            retention=RetentionPolicy.WORK_QUEUE,
            discard=DiscardPolicy.NEW,  # a full queue refuses, so that the publisher learns of it
            max_msgs=own.max_waiting,
            max_bytes=MAX_BYTES,
            max_age=own.keep_s,
            storage=StorageType.FILE,
        )
        parked = StreamConfig(
            name=own.parked_stream,
            subjects=[own.parked_subject],
            discard=DiscardPolicy.OLD,
            max_msgs=MAX_PARKED,
            max_bytes=MAX_PARKED_BYTES,
            max_age=own.keep_parked_s,
            storage=StorageType.FILE,
        )
        for config in (work, parked) if self._stream == own.stream else (parked,):
            try:
                await context.add_stream(config)
            except BadRequestError:  # it exists with another configuration
                await context.update_stream(config)
        consumer = ConsumerConfig(
            durable_name=own.durable,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=own.ack_wait_s,
            max_deliver=-1,
            max_ack_pending=own.max_ack_pending,
            filter_subject=own.subject if own.filtered else None,
        )
        await context.add_consumer(self._stream, consumer)
        self._context = context

    async def work(
        self,
        client: Client,
        room: Callable[[], Awaitable[None]],
        handle: Callable[[Msg], Awaitable[None]],
    ) -> None:
        """Fetches and handles one message at a time, for ever, each when `room` has returned.

        After a failure streams and consumer are created again, in case the server lost its data.
        """
        subscription: JetStreamContext.PullSubscription | None = None
        while True:
            await room()
            try:
                if subscription is None:
                    subscription = await self._prepared().pull_subscribe_bind(
                        durable=self._settings.durable, stream=self._stream
                    )
                (message,) = await subscription.fetch(1, timeout=FETCH_S)
                await handle(message)
            except TimeoutError:
                continue
            except Exception as error:  # noqa: BLE001  # one bad message must not end the fetching
                self._failed(error)
                await asyncio.sleep(RETRY_S)
                with contextlib.suppress(nats.errors.Error, TimeoutError):
                    await self.prepare(client)

    async def publish(self, subject: str, data: bytes, headers: dict[str, str]) -> None:
        """Stores a message, with the current trace, on one of the subjects. Raises the client
        library's errors.
        """
        tracing.inject(headers)
        await self._prepared().publish(subject, data, timeout=PUBLISH_TIMEOUT_S, headers=headers)

    async def park(self, message: Msg, reason: str, error: str) -> None:
        """Copies a message that can never be served, without its headers, which may hold a key.

        `error` is the text that a caller would get. The caller of this ends the delivery.
        """
        headers = {REASON_HEADER: reason, ERROR_HEADER: error}
        await self.publish(self._settings.parked_subject, message.data, headers)

    def _prepared(self) -> JetStreamContext:
        assert self._context is not None  # prepared before anything is fetched or published
        return self._context


def received(message: Msg) -> AbstractContextManager[tracing.Span]:
    """Returns the span of a message's handling, in the trace that its headers name, if they do."""
    headers = {name.lower(): text for name, text in (message.headers or {}).items()}
    parent = tracing.remote_context(headers)
    return tracing.span(f"process {message.subject}", tracing.SpanKind.CONSUMER, parent=parent)


def place_of(message: Msg) -> str:
    """Returns the message's place in the stream, the same at every delivery."""
    metadata = message.metadata
    return f"{metadata.timestamp.timestamp():.6f}-{metadata.sequence.stream}"
