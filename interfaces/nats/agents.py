"""Invocations over NATS: stored in a stream, taken by one replica, acknowledged once recorded.

The router publishes on `router.invoke.agent` without waiting for an answer, so the subject itself
is in a stream: invocations that are published while no agent runtime runs are answered later. When
another stream holds the subject already, the durable consumer is created there. Redelivery does no
harm: a message is answered once (see `services/agents/runs.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import nats.errors
import nats.js.errors
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
from pydantic import ValidationError

from common.tasks import end_tasks
from contracts.agents.invocations import AgentInvocation
from contracts.errors import DaarionError, InvalidRequest, Unavailable
from contracts.events import EventLog
from interfaces.http.base.errors import invalid_body
from services.agents.runs import AgentRuns

INVOKE = "router.invoke.agent"
PARKED = "agent.parked"
STREAM = "AGENT_INVOCATIONS"
PARKED_STREAM = "AGENT_PARKED"
DURABLE = "agent-runtime"
REASON_HEADER = "Daarion-Reason"

ACK_WAIT_S = 30.0
MAX_ACK_PENDING = 1_000
MAX_WAITING = 100_000
MAX_BYTES = 128 << 20
MAX_PARKED = 10_000
MAX_PARKED_BYTES = 64 << 20
PARK_AFTER_S = 24 * 3_600.0
KEEP_S = PARK_AFTER_S + 3_600.0
KEEP_PARKED_S = 14 * 24 * 3_600.0
FETCHERS = 8
FETCH_S = 10.0
RETRY_S = 1.0
FULL_PAUSE_S = 0.25
FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 30.0
PUBLISH_TIMEOUT_S = 2.0
CLOSE_TIMEOUT_S = 5.0


class AgentNats:
    """Takes invocations from the stream; `on_connect` starts it on a new connection."""

    def __init__(self, runs: AgentRuns, events: EventLog) -> None:
        self._runs = runs
        self._events = events
        self._stream: JetStreamContext | None = None
        self._client: Client | None = None
        self._name = STREAM
        self._fetchers: list[asyncio.Task[None]] = []

    async def on_connect(self, client: Client) -> None:
        """Prepares the streams and starts fetching. Raises the client library's errors."""
        self._client = client
        self._stream = await self._prepared(client)
        if not self._fetchers:
            self._fetchers = [
                asyncio.create_task(self._fetch(), name=f"agents:nats-{number}")
                for number in range(FETCHERS)
            ]

    async def close(self) -> None:
        """Stops fetching; unacknowledged messages are delivered to another replica."""
        await end_tasks(self._fetchers)

    def check(self) -> None:
        """Raises Unavailable when a fetcher has ended."""
        if any(fetcher.done() for fetcher in self._fetchers):
            raise Unavailable("invocations are no longer fetched from NATS")

    async def _prepared(self, client: Client) -> JetStreamContext:
        """Creates missing streams and the consumer; several replicas may do so at once."""
        stream = client.jetstream()
        try:
            self._name = await stream.find_stream_name_by_subject(INVOKE)
        except nats.js.errors.NotFoundError:
            await _ensure_stream(
                stream,
                STREAM,
                INVOKE,
                retention=RetentionPolicy.WORK_QUEUE,
                kept=(MAX_WAITING, MAX_BYTES, KEEP_S),
            )
            self._name = STREAM
        await _ensure_stream(
            stream,
            PARKED_STREAM,
            PARKED,
            retention=RetentionPolicy.LIMITS,
            kept=(MAX_PARKED, MAX_PARKED_BYTES, KEEP_PARKED_S),
        )
        consumer = ConsumerConfig(
            durable_name=DURABLE,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT_S,
            max_deliver=-1,
            max_ack_pending=MAX_ACK_PENDING,
            filter_subject=INVOKE,
        )
        await stream.add_consumer(self._name, consumer)
        return stream

    async def _fetch(self) -> None:
        """Takes one message at a time while this replica has room for a run; the rest stays in the
        stream for other replicas.
        """
        subscription: JetStreamContext.PullSubscription | None = None
        while True:
            try:
                if not self._runs.has_room:
                    await asyncio.sleep(FULL_PAUSE_S)
                    continue
                if subscription is None:
                    assert self._stream is not None  # set before fetching begins
                    subscription = await self._stream.pull_subscribe_bind(
                        durable=DURABLE, stream=self._name
                    )
                (message,) = await subscription.fetch(1, timeout=FETCH_S)
                await self._take(message)
            except (TimeoutError, nats.errors.TimeoutError):
                continue
            except Exception as error:  # noqa: BLE001  # one bad message must not end the fetching
                is_known = isinstance(error, (nats.errors.Error, nats.js.errors.Error))
                self._events.emit(
                    "agents.nats_fetch_failed",
                    error=type(error).__name__,
                    exc_info=None if is_known else error,
                )
                await asyncio.sleep(RETRY_S)
                await self._prepare_anew()

    async def _prepare_anew(self) -> None:
        """Creates streams and consumer again, in case the server lost its data."""
        assert self._client is not None
        with contextlib.suppress(nats.errors.Error, nats.js.errors.Error, TimeoutError):
            await self._prepared(self._client)

    async def _take(self, message: Msg) -> None:
        """Records and acknowledges one message, parks it, or leaves it for redelivery."""
        try:
            invocation = AgentInvocation.model_validate_json(message.data)
        except ValidationError as error:
            await self._park(message, invalid_body(error))
            return
        metadata = message.metadata
        # The place in the stream is the same at every delivery, so it identifies messages without
        # id.
        place = f"nats:{metadata.timestamp.timestamp():.6f}-{metadata.sequence.stream}"
        try:
            await self._runs.invoke(invocation, wait=False, trigger=place)
        except DaarionError as error:
            if error.retryable and time.time() - metadata.timestamp.timestamp() < PARK_AFTER_S:
                await message.nak(delay=delay_of(metadata.num_delivered))
            else:
                await self._park(message, error)
        else:
            await message.ack()

    async def _park(self, message: Msg, error: DaarionError | InvalidRequest) -> None:
        """Moves a message that can never be served to `agent.parked`."""
        assert self._stream is not None
        await self._stream.publish(
            PARKED, message.data, timeout=PUBLISH_TIMEOUT_S, headers={REASON_HEADER: error.type}
        )
        self._events.emit(
            "agents.nats_parked", reason=error.type, deliveries=message.metadata.num_delivered
        )
        await message.term()


def delay_of(delivery: int) -> float:
    """Returns the seconds until redelivery after the given delivery (from 1) was refused."""
    return min(FIRST_DELAY_S * 2.0 ** min(delivery - 1, 10), LONGEST_DELAY_S)


async def _ensure_stream(
    stream: JetStreamContext,
    name: str,
    subject: str,
    *,
    retention: RetentionPolicy,
    kept: tuple[int, int, float],
) -> None:
    """Creates or updates a stream; `kept` bounds its messages, bytes and seconds."""
    messages, size, seconds = kept
    config = StreamConfig(
        name=name,
        subjects=[subject],
        retention=retention,
        # A full queue refuses new messages, so that their publisher learns of it; the parked ones
        # make room by age.
        discard=DiscardPolicy.NEW if retention == RetentionPolicy.WORK_QUEUE else DiscardPolicy.OLD,
        max_msgs=messages,
        max_bytes=size,
        max_age=seconds,
        storage=StorageType.FILE,
    )
    try:
        await stream.add_stream(config)
    except nats.js.errors.BadRequestError:  # it exists with another configuration
        await stream.update_stream(config)
