"""Invocations over NATS: stored in a stream, taken by one replica, acknowledged once recorded.

The router publishes on `router.invoke.agent` without waiting for an answer, so the subject itself
is in a stream: invocations that are published while no agent runtime runs are answered later. When
another stream holds the subject already, the durable consumer is created there. Redelivery does no
harm: a message is answered once (see `services/agents/runs.py`). A run acts for the sender, see
`senders`.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from common.tasks import end_tasks
from contracts.access.principals import acting_as
from contracts.agents.invocations import AgentInvocation
from contracts.errors import DaarionError, Unavailable
from contracts.events import EventLog
from interfaces.nats.senders import Senders, read
from interfaces.nats.work_queue import KEEP_PARKED_S, QueueSettings, WorkQueue, place_of, received
from services.agents.runs import AgentRuns

APPLICATION = "agents"
INVOKE = "router.invoke.agent"
PARKED = "agent.parked"
STREAM = "AGENT_INVOCATIONS"
PARKED_STREAM = "AGENT_PARKED"
DURABLE = "agent-runtime"

PARK_AFTER_S = 24 * 3_600.0
QUEUE = QueueSettings(
    STREAM,
    INVOKE,
    PARKED_STREAM,
    PARKED,
    DURABLE,
    max_waiting=100_000,
    keep_s=PARK_AFTER_S + 3_600.0,
    ack_wait_s=30.0,
    max_ack_pending=1_000,
    filtered=True,
)
FETCHERS = 8
FULL_PAUSE_S = 0.25
FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 30.0


class AgentNats:
    """Takes invocations from the stream; `on_connect` starts it on a new connection.

    Those that can never be served are kept for `keep_parked_s`.
    """

    def __init__(
        self,
        runs: AgentRuns,
        senders: Senders,
        events: EventLog,
        keep_parked_s: float = KEEP_PARKED_S,
    ) -> None:
        self._runs = runs
        self._senders = senders
        self._events = events
        self._queue = WorkQueue(replace(QUEUE, keep_parked_s=keep_parked_s), self._fetch_failed)
        self._fetchers: list[asyncio.Task[None]] = []

    async def on_connect(self, client: Client) -> None:
        """Prepares the streams and starts fetching. Raises the client library's errors."""
        await self._queue.prepare(client)
        if not self._fetchers:
            self._fetchers = [
                asyncio.create_task(
                    self._queue.work(client, self._room, self._take), name=f"agents:nats-{number}"
                )
                for number in range(FETCHERS)
            ]

    async def close(self) -> None:
        """Stops fetching; unacknowledged messages are delivered to another replica."""
        await end_tasks(self._fetchers)

    def check(self) -> None:
        """Raises Unavailable when a fetcher has ended."""
        if any(fetcher.done() for fetcher in self._fetchers):
            raise Unavailable("invocations are no longer fetched from NATS")

    async def _room(self) -> None:
        """Waits until this replica can take a run; the rest stays in the stream for others."""
        while not self._runs.has_room:  # noqa: ASYNC110  # runs end in many places
            await asyncio.sleep(FULL_PAUSE_S)

    def _fetch_failed(self, error: Exception) -> None:
        self._events.emit(
            "agents.nats_fetch_failed",
            error=type(error).__name__,
            exc_info=None if isinstance(error, nats.errors.Error) else error,
        )

    async def _take(self, message: Msg) -> None:
        """Records and acknowledges one message, parks it, or leaves it for redelivery."""
        metadata, sender = message.metadata, None
        try:
            sender = self._senders.of(message, APPLICATION)
            invocation = read(message, AgentInvocation, sender)
            # A message without an id is known by its place.
            with acting_as(sender), received(message):
                await self._runs.invoke(invocation, wait=False, trigger=f"nats:{place_of(message)}")
        except DaarionError as error:
            if error.retryable and time.time() - metadata.timestamp.timestamp() < PARK_AFTER_S:
                await message.nak(delay=delay_of(metadata.num_delivered))
            else:
                self._senders.note_refusal(message, error, sender)
                await self._park(message, error)
        else:
            await message.ack()

    async def _park(self, message: Msg, error: DaarionError) -> None:
        """Moves a message that can never be served to `agent.parked`."""
        await self._queue.park(message, error.type, error.message)
        self._events.emit(
            "agents.nats_parked", reason=error.type, deliveries=message.metadata.num_delivered
        )
        await message.term()


def delay_of(delivery: int) -> float:
    """Returns the seconds until redelivery after the given delivery (from 1) was refused."""
    return min(FIRST_DELAY_S * 2.0 ** min(delivery - 1, 10), LONGEST_DELAY_S)
