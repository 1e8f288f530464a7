"""The streams of tool calls.

`tool.request` itself is in no stream: JetStream would answer the requester with its own
acknowledgement before the tool's result. A replica takes a request from the queue group and puts
it, with the requester's reply subject, on `tool.submit`, which a work-queue stream keeps until a
worker has acknowledged it. Publishers that want that guarantee from the first hop publish to
`tool.submit` themselves and get the stream's acknowledgement.
"""

from __future__ import annotations

from interfaces.nats.work_queue import QueueSettings

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
ACK_WAIT_S = 10.0


def queue_settings(max_waiting: int) -> QueueSettings:
    """Returns the queue of submitted calls."""
    return QueueSettings(
        WORK_STREAM,
        SUBMIT,
        PARKED_STREAM,
        PARKED,
        DURABLE,
        max_waiting=max_waiting,
        keep_s=24 * 3_600.0,
        ack_wait_s=ACK_WAIT_S,
        max_ack_pending=5_000,
    )
