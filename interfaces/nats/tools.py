"""Tool calls over NATS: delivered at least once, executed once, by the ids in the ledger.

`tool.request` itself is in no stream: JetStream would answer the requester with its own
acknowledgement before the tool's result. A replica takes a request from the queue group and puts
it, with the requester's reply subject, on `tool.submit`, which a work-queue stream keeps until a
worker has acknowledged it. Publishers that want that guarantee from the first hop publish to
`tool.submit` themselves and get the stream's acknowledgement.

A call runs for its sender, see `senders`. In the stream a delegation stands for the sender's key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import nats.errors
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg

from common.periodic import repeating
from common.tasks import end_tasks
from common.tracing import inject
from configs.tools import NatsSettings
from contracts.access.principals import Principal, acting_as
from contracts.errors import DaarionError, InvalidRequest, Overloaded
from contracts.events import EventLog
from contracts.tools.api import ToolCallRequest, ToolCallResult
from interfaces.nats.senders import Senders, check_reply, may_reply, read
from interfaces.nats.work_queue import KEEP_PARKED_S, QueueSettings, WorkQueue, place_of, received
from interfaces.tools.answers import call_body, unreadable
from services.tools.calls import ToolCalls
from services.tools.outcomes import CallAnswer

APPLICATION = "tools"
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
BUSY_DELAY_S = 2.0
KEEP_ALIVE_S = ACK_WAIT_S / 3
CLOSE_TIMEOUT_S = 5.0
DAY_S = 86_400.0
PAYLOAD_MARGIN = 4_096


def queue_settings(max_waiting: int, keep_parked_s: float = KEEP_PARKED_S) -> QueueSettings:
    """Returns the queue of submitted calls."""
    return QueueSettings(
        WORK_STREAM,
        SUBMIT,
        PARKED_STREAM,
        PARKED,
        DURABLE,
        max_waiting=max_waiting,
        keep_s=DAY_S,
        ack_wait_s=ACK_WAIT_S,
        max_ack_pending=5_000,
        keep_parked_s=keep_parked_s,
    )


class ToolNats:
    """Takes requests from the queue group into the stream, and runs what the stream holds.

    `on_connect` starts it on a connection.
    """

    def __init__(
        self,
        calls: Callable[[], ToolCalls],
        senders: Senders,
        events: EventLog,
        limits: NatsSettings,
    ) -> None:
        self._calls = calls
        self._senders = senders
        self._events = events
        self._limits = limits
        queue = queue_settings(limits.max_waiting, limits.keep_parked_days * DAY_S)
        self._queue = WorkQueue(queue, self._fetch_failed)
        self._free = asyncio.Semaphore(limits.max_in_flight)
        self._client: Client | None = None
        self._fetcher: asyncio.Task[None] | None = None
        self._working: set[asyncio.Task[None]] = set()

    async def on_connect(self, client: Client) -> None:
        """Prepares the streams, subscribes and begins to fetch. Raises errors of the library."""
        self._client = client
        await self._queue.prepare(client)
        await client.subscribe(REQUEST, queue=QUEUE_GROUP, cb=self._take)
        await client.flush()  # once this replica reports ready, it listens
        self._fetcher = asyncio.create_task(
            self._queue.work(client, self._room, self._spawn), name="tools:nats"
        )

    async def close(self) -> None:
        """Stops fetching. Running calls get a few seconds; the rest goes to another replica."""
        if self._fetcher is not None:
            await end_tasks([self._fetcher])
        if self._working:
            await asyncio.wait(self._working, timeout=CLOSE_TIMEOUT_S)
        await end_tasks(self._working)

    async def _take(self, message: Msg) -> None:
        """Puts a request into the stream; answers at once if its sender may not send it, or the
        stream is full or away.
        """
        headers, sender = {REQUEST_ID_HEADER: f"nats-{uuid4().hex}"}, None
        if message.reply:
            headers[REPLY_HEADER] = message.reply
        try:
            sender = self._senders.of(message, APPLICATION)
            check_reply(message.reply, sender)
            headers |= self._senders.kept(sender, DAY_S)
            with received(message):
                await self._queue.publish(SUBMIT, message.data, headers)
        except (nats.errors.Error, TimeoutError, DaarionError) as error:
            self._events.emit(
                "tools.nats_refused", error=type(error).__name__, principal=sender and sender.name
            )
            if not isinstance(error, DaarionError):
                error = Overloaded("the queue of tool calls is full or unavailable: retry")
            self._senders.note_refusal(message, error, sender)
            refusal = _named(unreadable(error), _fields(message.data))
            await self._respond(refusal, message.reply, sender)

    async def _room(self) -> None:
        async with self._free:  # only this fetcher takes slots, so the one seen here stays free
            pass

    def _fetch_failed(self, error: Exception) -> None:
        self._events.emit("tools.nats_fetch_failed", error=type(error).__name__)

    async def _spawn(self, message: Msg) -> None:
        await self._free.acquire()
        task = asyncio.create_task(self._work(message))
        self._working.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._working.discard(task)
        self._free.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._events.emit("tools.nats_work_failed", error=type(error).__name__, exc_info=error)

    async def _work(self, message: Msg) -> None:
        """Handles one delivery, and keeps it from being delivered again meanwhile."""
        async with repeating(message.in_progress, KEEP_ALIVE_S, lambda *_: None):
            with received(message):
                await self._handle(message)

    async def _handle(self, message: Msg) -> None:
        headers = message.headers or {}
        request_id = headers.get(REQUEST_ID_HEADER) or f"nats-{place_of(message)}"
        reply_to, sender = headers.get(REPLY_HEADER), None
        try:
            sender = self._senders.of(message, APPLICATION)
            check_reply(reply_to, sender)
            request = read(message, ToolCallRequest, sender)
        except DaarionError as error:
            if error.retryable:
                await message.nak(delay=BUSY_DELAY_S)
                return
            self._senders.note_refusal(message, error, sender)
            reason = "invalid" if isinstance(error, InvalidRequest) else error.type
            refused = _named(unreadable(error, request_id), _fields(message.data))
            await self._park(message, reason, refused, reply_to, sender)
            return
        if message.metadata.num_delivered > self._limits.max_deliveries:
            refusal = ToolCallResult(
                ok=False,
                error="given up after several deliveries",
                error_kind="unavailable",
                retryable=True,
            )
            given_up = _named(refusal, request.model_dump())
            await self._park(message, "deliveries", given_up, reply_to, sender)
            return
        # Without a caller's id, the message's place in the stream names the call at every delivery.
        named = request.model_copy(
            update={"call_id": request.call_id or f"nats-{place_of(message)}"}
        )
        with acting_as(sender):
            reply = await self._calls().call(named, via="nats", request_id=request_id)
        if _may_succeed_later(reply):
            await message.nak(delay=BUSY_DELAY_S)
            return
        answer = _named(_fitting(reply, self._max_payload()), named.model_dump())
        await self._respond(answer, reply_to, sender)
        await message.ack()

    async def _park(
        self,
        message: Msg,
        reason: str,
        answer: dict[str, Any],
        reply_to: str | None,
        sender: Principal | None,
    ) -> None:
        """Moves a message that can never be served to the parked stream, and answers its caller."""
        await self._queue.park(message, reason, answer["error"])
        self._events.emit(
            "tools.nats_parked",
            reason=reason,
            deliveries=message.metadata.num_delivered,
            principal=sender and sender.name,
        )
        await self._respond(answer, reply_to, sender)
        await message.term()

    async def _respond(
        self, answer: dict[str, Any], reply_to: str | None, sender: Principal | None
    ) -> None:
        """Publishes to the requester, where it may have answers sent, and to `tool.response`, where
        that is configured.
        """
        assert self._client is not None
        body, headers = orjson.dumps(answer), dict[str, str]()
        inject(headers)
        if self._senders.settings.tool_response:
            await self._client.publish(RESPONSE, body, headers=headers or None)
        if reply_to and may_reply(reply_to, sender):
            await self._client.publish(reply_to, body, headers=headers or None)

    def _max_payload(self) -> int:
        assert self._client is not None
        return int(self._client.max_payload) - PAYLOAD_MARGIN


def _may_succeed_later(reply: CallAnswer) -> bool:
    """Whether a later delivery may succeed: the database was away, or the call runs elsewhere."""
    result = reply.result
    return (
        not reply.executed
        and bool(result.retryable)
        and result.error_kind in {"unavailable", "conflict"}
    )


def _fitting(reply: CallAnswer, max_bytes: int) -> ToolCallResult:
    """Returns the result, by reference alone if it is too long for a NATS message."""
    result = reply.result
    if len(orjson.dumps(call_body(result))) <= max_bytes:
        return result
    return result.model_copy(
        update={"result": None, "truncated": True, "details": None, "result_ref": reply.reference}
    )


def _named(result: ToolCallResult, request: dict[str, Any]) -> dict[str, Any]:
    """Returns the published answer; ids identify the call for listeners of `tool.response`."""
    echoed = {name: request.get(name) for name in ("tool_id", "agent_id", "microdao_id", "call_id")}
    return {
        **{name: value for name, value in echoed.items() if isinstance(value, str)},
        **call_body(result),
    }


def _fields(data: bytes) -> dict[str, Any]:
    try:
        given = orjson.loads(data)
    except ValueError:
        return {}
    return given if isinstance(given, dict) else {}
