"""The agent runtime: an invocation becomes a run, and runs are answered under leases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Annotated
from uuid import UUID, uuid4

from pydantic import Field

from common.periodic import start_periodic
from common.tasks import end_tasks
from common.tracing import current_traceparent
from contracts.access.policy import PolicyService
from contracts.access.principals import acting, acting_as
from contracts.agents.blueprints import Blueprint
from contracts.agents.invocations import AgentInvocation, InvocationAnswer
from contracts.agents.ports import RunStore
from contracts.agents.runs import NewRun, Run, RunView
from contracts.deadline import Deadline
from contracts.errors import DaarionError, InvalidRequest, NotFound, Overloaded, Unavailable
from contracts.events import EventLog, failure_event
from contracts.identity import Tenant, new_id
from contracts.shapes import Strict
from contracts.workspace.messaging_service import MAX_RECENT, Messaging
from services.agents.channel_tenants import ChannelTenants
from services.agents.context import is_from_agent, named_trigger, newest_human, trigger_of
from services.agents.run_attempts import RunAttempts
from services.agents.untrusted_text import new_nonce

ACCEPT_TIMEOUT_S = 10.0
POLL_EVERY_S = 0.25
RETRY_WHEN_FULL_S = 2.0
PURGE_EVERY_S = 3_600.0
CLOSE_S = 5.0


class RunSettings(Strict):
    """Bounds of one replica.

    At most `max_running` runs are worked on and `max_waiting` wait; more are refused. A replica
    renews the leases of its runs three times in `lease_s`. Another replica takes over a run with an
    expired lease within `claim_every_s`. Ended runs are kept for `keep_days`.
    """

    max_running: Annotated[int, Field(ge=1, le=1_000)] = 16
    max_waiting: Annotated[int, Field(ge=0, le=100_000)] = 500
    lease_s: Annotated[float, Field(ge=1, le=3_600)] = 15.0
    claim_every_s: Annotated[float, Field(ge=0.05, le=600)] = 2.0
    keep_days: Annotated[float, Field(gt=0, le=3_650)] = 90.0


class AgentRuns:
    """Accepts invocations and works on runs, on the event loop of one replica."""

    def __init__(
        self,
        store: RunStore,
        messaging: Messaging,
        attempts: RunAttempts,
        events: EventLog,
        *,
        channels: ChannelTenants,
        blueprints: Callable[[], Mapping[str, Blueprint]],
        policy: PolicyService,
        settings: RunSettings,
    ) -> None:
        """`policy` is asked before a run is recorded."""
        self._store = store
        self._messaging = messaging
        self._attempts = attempts
        self._events = events
        self._blueprints = blueprints
        self._policy = policy
        self._settings = settings
        self._channels = channels
        self._queue: asyncio.Queue[Run] = asyncio.Queue()
        self._accepted: dict[UUID, Run] = {}
        self._reserved = 0
        self._end_signals: dict[UUID, asyncio.Event] = {}
        self._running_attempts: dict[UUID, asyncio.Task[None]] = {}
        self._loops: list[asyncio.Task[None]] = []
        self._closing = False

    def start(self) -> None:
        """Starts the workers; must be called on the running event loop."""
        self._loops = [
            asyncio.create_task(self._work(), name=f"agents:worker-{number}")
            for number in range(self._settings.max_running)
        ]
        upkeep = (
            ("leases", self._settings.lease_s / 3, self._renew, "agents.leases_not_renewed"),
            ("resume", self._settings.claim_every_s, self._resume, "agents.claim_failed"),
            ("purge", PURGE_EVERY_S, self._purge, "agents.purge_failed"),
        )
        for name, every_s, once, failed in upkeep:
            report = failure_event(self._events, failed)
            self._loops.append(start_periodic(once, every_s, report, name=f"agents:{name}"))

    async def close(self) -> None:
        """Accepts no more runs, gives running ones `CLOSE_S`, and releases the rest to other
        replicas.
        """
        self._closing = True
        if self._running_attempts:
            await asyncio.wait(self._running_attempts.values(), timeout=CLOSE_S)
        await end_tasks([*self._running_attempts.values(), *self._loops])
        for ended in self._end_signals.values():
            ended.set()
        await self._attempts.close()
        for run in list(self._accepted.values()):
            try:
                await self._store.release(run, 0.0)
            except DaarionError:  # its lease runs out instead
                break

    async def invoke(
        self, invocation: AgentInvocation, *, wait: bool, trigger: str | None = None
    ) -> InvocationAnswer:
        """Answers a message once. Returns when the run is recorded; with `wait`, when it has ended.

        `trigger` identifies an invocation that names no message, for callers that may deliver it
        more than once.

        Raises:
            NotFound: no such agent, no such channel, or no message of a person in it.
            Forbidden: the channel is another microDAO's, the agent is not in it, or the caller may
                not act for them, or the policy service denies it.
            Overloaded: this replica holds as many runs as it may.
            Unavailable: messaging service or database is away. Repeating the invocation is safe:
                if the run was recorded, the repetition finds it.
        """
        blueprint = self.blueprint(invocation.agent_id)
        deadline = Deadline.after(ACCEPT_TIMEOUT_S)
        self._reserve()
        try:
            microdao_id, channel_id = await self._channels.place(invocation, deadline)
            tenant = Tenant(microdao_id=microdao_id, agent_id=blueprint.id)
            caller, payload = acting().narrowed(tenant), invocation.payload
            await self._policy.check("send_message", ("agent", blueprint.id), tenant)
            with acting_as(caller):
                trigger_id = payload.message_id or await self._trigger(
                    invocation, trigger, deadline
                )
            new = NewRun(
                id=new_id(),
                microdao_id=microdao_id,
                agent_id=blueprint.id,
                channel_id=channel_id,
                trigger_id=trigger_id,
                invocation=invocation,
                caller=caller.claims(),
                nonce=new_nonce(),
                traceparent=current_traceparent(),
            )
            view, run = await self._store.accept(new, self._settings.lease_s)
            if run is not None:
                self._enqueue(run)
        finally:
            self._reserved -= 1
        is_duplicate = run is None
        if wait:
            view = await self._ended_view(view, Deadline.after(2 * blueprint.limits.seconds))
        return InvocationAnswer(
            run_id=view.id,
            microdao_id=microdao_id,
            status=view.status,
            reply=view.reply,
            duplicate=is_duplicate or None,
        )

    def blueprint(self, agent_id: str) -> Blueprint:
        """Returns the agent's blueprint. Raises NotFound."""
        found = self._blueprints().get(agent_id)
        if found is None:
            raise NotFound(
                f"there is no agent `{agent_id[:64]}`: "
                "GET /internal/agent-runtime/agents lists them"
            )
        return found

    @property
    def has_room(self) -> bool:
        """Whether this replica would accept one more run."""
        return (
            not self._closing
            and len(self._accepted) + self._reserved
            < self._settings.max_running + self._settings.max_waiting
        )

    def check(self) -> None:
        """Raises Unavailable when a background task has ended."""
        ended = [task.get_name().partition(":")[2] for task in self._loops if task.done()]
        if ended and not self._closing:
            raise Unavailable(f"background tasks have ended: {', '.join(sorted(ended))}")

    async def _trigger(
        self, invocation: AgentInvocation, trigger: str | None, deadline: Deadline
    ) -> str:
        """The trigger of an invocation without a message id: the message of its Matrix event, else
        the channel's newest message of a person.
        """
        payload = invocation.payload
        if invocation.entrypoint != "channel_message":
            return payload.matrix_event_id or trigger or f"once:{uuid4().hex}"
        assert payload.channel_id is not None  # checked by AgentInvocation
        messages = await self._messaging.recent_messages(payload.channel_id, MAX_RECENT, deadline)
        if (
            payload.matrix_event_id is not None
            and (named := named_trigger(messages, payload.matrix_event_id)) is not None
        ):
            return named
        message = newest_human(messages)
        if message is None:
            raise NotFound(
                "the channel holds no message of a person: "
                "name the one to answer as payload.message_id"
            )
        if is_from_agent(message):
            raise InvalidRequest("agents do not answer each other")
        return trigger_of(message)

    def _reserve(self) -> None:
        if not self.has_room:
            raise Overloaded("too many runs wait: retry shortly", retry_after_s=RETRY_WHEN_FULL_S)
        self._reserved += 1

    def _enqueue(self, run: Run) -> None:
        self._accepted[run.id] = run
        self._queue.put_nowait(run)

    async def _ended_view(self, view: RunView, deadline: Deadline) -> RunView:
        """The run once it has ended, or as it is when the deadline passes. The end of a run of this
        replica is signalled; other replicas' runs are polled.
        """
        while view.finished_at is None and deadline.remaining() > 0 and not self._closing:
            if view.id in self._accepted:
                ended = self._end_signals.setdefault(view.id, asyncio.Event())
                try:
                    async with asyncio.timeout(deadline.remaining()):
                        await ended.wait()
                except TimeoutError:
                    break
            else:
                await asyncio.sleep(POLL_EVERY_S)
            view = await self._store.find(view.microdao_id, view.id) or view
        return view

    async def _work(self) -> None:
        while True:
            run = await self._queue.get()
            task = asyncio.create_task(self._attempts.work(run), name=f"agents:run-{run.id}")
            self._running_attempts[run.id] = task
            try:
                await asyncio.wait([task])
                if not task.cancelled() and (error := task.exception()) is not None:
                    self._events.emit(
                        "agents.defect",
                        run_id=str(run.id),
                        error=type(error).__name__,
                        exc_info=error,
                    )
                # A run cancelled at close stays accepted, so that `close` postpones it.
                if not self._closing or not task.cancelled():
                    self._accepted.pop(run.id, None)
            finally:
                self._running_attempts.pop(run.id, None)
                if (ended := self._end_signals.pop(run.id, None)) is not None:
                    ended.set()

    async def _renew(self) -> None:
        if self._accepted:
            await self._store.renew(self._accepted, self._settings.lease_s)

    async def _resume(self) -> None:
        """Takes over runs with expired leases, as many as can be worked on at once."""
        free = self._settings.max_running - len(self._running_attempts) - self._queue.qsize()
        if free <= 0 or self._closing:
            return
        for run in await self._store.lease(self._settings.lease_s, free, list(self._blueprints())):
            self._events.emit(
                "agents.run_claimed", run_id=str(run.id), attempt=run.attempt, state=run.state
            )
            if run.id not in self._accepted:
                self._enqueue(run)

    async def _purge(self) -> None:
        await self._store.purge(self._settings.keep_days)
