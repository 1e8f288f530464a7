"""The streams of tool calls.

`tool.request` itself is in no stream: JetStream would answer the requester with its own
acknowledgement before the tool's result. A replica takes a request from the queue group and puts
it, with the requester's reply subject, on `tool.submit`, which a work-queue stream keeps until a
worker has acknowledged it. Publishers that want that guarantee from the first hop publish to
`tool.submit` themselves and get the stream's acknowledgement.
"""

from __future__ import annotations

from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import BadRequestError

REQUEST = "tool.request"
RESPONSE = "tool.response"
SUBMIT = "tool.submit"
PARKED = "tool.parked"
QUEUE_GROUP = "toolcore"
WORK_STREAM = "TOOL_CALLS"
PARKED_STREAM = "TOOL_PARKED"
DURABLE = "toolcore"
REPLY_HEADER = "Daarion-Reply-To"
REQUEST_ID_HEADER = "Daarion-Request-Id"
REASON_HEADER = "Daarion-Reason"

ACK_WAIT_S = 10.0
MAX_ACK_PENDING = 5_000
MAX_WORK_BYTES = 128 << 20
MAX_PARKED = 10_000
MAX_PARKED_BYTES = 64 << 20
KEEP_WORK_S = 24 * 3_600.0
KEEP_PARKED_S = 14 * 24 * 3_600.0


async def prepare(client: Client, max_waiting: int) -> JetStreamContext:
    """Creates or updates both streams and the durable consumer. Replicas may do so concurrently."""
    stream = client.jetstream()
    await _ensure_stream(
        stream,
        StreamConfig(
            name=WORK_STREAM,
            subjects=[SUBMIT],
            retention=RetentionPolicy.WORK_QUEUE,
            discard=DiscardPolicy.NEW,  # a full queue refuses the newest, whose caller still waits
            max_msgs=max_waiting,
            max_bytes=MAX_WORK_BYTES,
            max_age=KEEP_WORK_S,
            storage=StorageType.FILE,
        ),
    )
    await _ensure_stream(
        stream,
        StreamConfig(
            name=PARKED_STREAM,
            subjects=[PARKED],
            discard=DiscardPolicy.OLD,
            max_msgs=MAX_PARKED,
            max_bytes=MAX_PARKED_BYTES,
            max_age=KEEP_PARKED_S,
            storage=StorageType.FILE,
        ),
    )
    consumer = ConsumerConfig(
        durable_name=DURABLE,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=ACK_WAIT_S,
        max_deliver=-1,
        max_ack_pending=MAX_ACK_PENDING,
    )
    await stream.add_consumer(WORK_STREAM, consumer)
    return stream


async def _ensure_stream(stream: JetStreamContext, config: StreamConfig) -> None:
    try:
        await stream.add_stream(config)
    except BadRequestError:  # it exists with another configuration
        await stream.update_stream(config)
