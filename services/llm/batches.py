"""Batches: requests are stored when submitted, and answered at low priority by every replica."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import orjson
from pydantic_core import to_json

from common.periodic import start_periodic
from common.retry import retry
from common.tasks import end_tasks
from contracts.access.principals import INTERNAL, acting
from contracts.errors import (
    CircuitOpen,
    DaarionError,
    DatabaseUnavailable,
    EngineUnavailable,
    Internal,
    InvalidRequest,
    LimitsUnavailable,
    OverLimit,
    Overloaded,
    RateLimited,
    UpstreamRateLimited,
    is_retryable,
)
from contracts.events import EventLog, failure_event
from contracts.llm.answers import ProxyResponse
from contracts.llm.batches import (
    Batch,
    BatchQueue,
    BatchRequest,
    BatchStore,
    BatchWork,
    Delay,
    ItemResult,
    NewItem,
)
from contracts.llm.requests import ProxyRequest
from services.llm.cache import cache_key

_PAUSES_BATCH = (RateLimited, LimitsUnavailable, Overloaded, DatabaseUnavailable)
"""A limit, a queue or a part of this product refused: pauses the whole batch, counts no failure."""
_DELAYS_MODEL = (CircuitOpen, EngineUnavailable)
"""The circuit is open or the engine starts: delays requests of that model, up to a bound."""
MAX_REMEMBERED = 1_000
MAX_PAUSE_S = 15.0


@dataclass(frozen=True)
class Batches:
    """The use cases of `/batch`. `wake` wakes the worker of this replica."""

    store: BatchStore
    events: EventLog
    wake: Callable[[], None]
    max_waiting: Callable[[], int]

    async def submit(self, requests: Sequence[BatchRequest], *, credential: str) -> Batch:
        """Stores the requests as one batch, to be answered for the principal at work, under
        `credential`.

        Raises:
            InvalidRequest: a `custom_id` twice, several microDAOs, or `cache` without temperature
                0.
            RateLimited: too many requests of the microDAO wait in batches already.
            OverLimit: these alone are more than may wait.
        """
        # In a thread, because thousands of requests take a while.
        microdao_id, items = await asyncio.to_thread(_prepared, requests, credential)
        batch = await self.store.create(microdao_id, items, self.max_waiting(), credential)
        self.events.emit(
            "llm.batch_submitted", batch_id=batch.id, microdao_id=microdao_id, requests=len(items)
        )
        self.wake()
        return batch

    async def cancel(self, microdao_id: str, batch_id: str, submitter: str | None = None) -> Batch:
        """Cancels a batch: waiting requests never start, running ones are stopped within seconds.

        Raises NotFound.
        """
        await self.store.get(microdao_id, batch_id, submitter)
        batch = await self.store.cancel(microdao_id, batch_id)
        if batch.status != "completed":
            self.events.emit("llm.batch_cancelled", batch_id=batch.id, microdao_id=microdao_id)
        return batch

    async def results(
        self, microdao_id: str, batch_id: str, submitter: str | None = None
    ) -> AsyncIterator[list[ItemResult]]:
        """Returns the results, some at a time. Raises NotFound before the first."""
        await self.store.get(microdao_id, batch_id, submitter)
        return self.store.results(microdao_id, batch_id)


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Bounds and rhythm of a worker, in seconds where not said otherwise.

    `concurrency` requests are answered at a time, fewer while callers wait for other calls. An idle
    worker polls every `poll_every_s` for work of other replicas. A lease is renewed every
    `renew_every_s` and ends `lease_s` after that. A request that fails for a transient reason is
    retried after `backoff_s`, twice as long each time, `max_failures` times. A request whose model
    has an open circuit is retried after growing pauses, for at most `stall_limit_s`.
    """

    concurrency: int = 4
    max_failures: int = 5
    poll_every_s: float = 1.0
    lease_s: float = 30.0
    renew_every_s: float = 2.0
    backoff_s: float = 5.0
    backoff_max_s: float = 600.0
    stall_limit_s: float = 3600.0


def delay_after(
    error: DaarionError, failures: int, settings: WorkerSettings, stalled_s: float = 0.0
) -> Delay | None:
    """Returns when a failed request is retried, or None when the failure is its result.

    `failures` came before this one; its model has been unavailable for `stalled_s` seconds.
    """
    if isinstance(error, OverLimit):
        return None
    if isinstance(error, _PAUSES_BATCH):
        return Delay(
            min(error.retry_after_s or settings.backoff_s, settings.backoff_max_s), pause_batch=True
        )
    if isinstance(error, _DELAYS_MODEL):
        if stalled_s >= settings.stall_limit_s:
            return None
        pause = max(error.retry_after_s or 0.0, settings.backoff_s, stalled_s)
        return Delay(min(pause, settings.backoff_max_s), stalled=True)
    if not error.retryable or failures + 1 >= settings.max_failures:
        return None
    factor = 6 if isinstance(error, UpstreamRateLimited) else 1
    own = settings.backoff_s * factor * 2**failures
    return Delay(min(max(own, error.retry_after_s or 0.0), settings.backoff_max_s), failed=True)


class BatchWorker:
    """Answers leased requests in one process; another process finishes those it leaves.

    `answer` runs one call, given the request, its id and its caller's claims. `in_work` returns how
    many interactive calls this replica serves now.
    """

    def __init__(
        self,
        queue: BatchQueue,
        answer: Callable[[ProxyRequest, str, Mapping[str, Any]], Awaitable[ProxyResponse]],
        in_work: Callable[[], int],
        events: EventLog,
        settings: WorkerSettings,
    ) -> None:
        self.settings = settings
        self._queue = queue
        self._answer = answer
        self._in_work = in_work
        self._events = events
        self._last_failures: dict[str, DaarionError] = {}  # of each model
        self._running: dict[UUID, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Starts to work, on the running event loop."""
        poll_s = self.settings.poll_every_s
        self._loops = [
            start_periodic(
                self._begin_next,
                poll_s,
                failure_event(
                    self._events, "llm.batch_waits", defect="llm.batch_defect", with_pause=True
                ),
                name="batches",
                at_once=True,
                wake=self._changed,
                retry_s=(poll_s, MAX_PAUSE_S),
            ),
            start_periodic(
                self._renew_leases,
                self.settings.renew_every_s,
                # If a lease ends meanwhile, a request runs twice but has one result.
                failure_event(self._events, None, defect="llm.batch_defect"),
                name="batches:leases",
            ),
        ]

    async def close(self) -> None:
        """Stops, and gives unfinished requests back."""
        await end_tasks(self._loops)
        await end_tasks(list(self._running.values()))

    def wake(self) -> None:
        """Wakes the worker: there may be work, or room for it."""
        self._changed.set()

    def _free(self) -> int:
        """Returns the free slots.

        Each interactive call takes a slot from batches, except the last: batches never stall.
        """
        most = self.settings.concurrency
        return min(most, max(1, most - self._in_work())) - len(self._running)

    async def _begin_next(self) -> bool:
        """Begins a request where there is room and work; returns whether there was."""
        work = await self._queue.lease(self.settings.lease_s) if self._free() > 0 else None
        if work is None:
            return False
        task = asyncio.create_task(self._run(work), name=f"batch:{work.batch_id}:{work.position}")
        self._running[work.lease] = task
        task.add_done_callback(lambda _: self._ended(work.lease))
        return True

    def _ended(self, lease: UUID) -> None:
        self._running.pop(lease, None)
        self.wake()

    async def _renew_leases(self) -> None:
        """Renews the leases; cancels tasks whose lease is lost or whose batch was cancelled."""
        held = set(self._running)
        kept = await self._queue.renew(held, self.settings.lease_s) if held else held
        for lease in held - kept:
            if (task := self._running.get(lease)) is not None:
                task.cancel()

    async def _run(self, work: BatchWork) -> None:
        try:
            result, succeeded = await self._result(work)
            if result is not None:
                await self._finish(work, result, succeeded=succeeded)
        except asyncio.CancelledError:
            await self._release(work, Delay(0.0))
            raise
        except Exception as error:  # noqa: BLE001  # the lease ends, which counts as a failure
            self._events.emit(
                "llm.batch_defect",
                batch_id=str(work.batch_id),
                error=type(error).__name__,
                exc_info=error,
            )

    async def _result(self, work: BatchWork) -> tuple[bytes | None, bool]:
        """Returns the result and whether it is an answer; None once the request was given back."""
        request_id = f"batch-{work.batch_id}-{work.position}"
        request, caller = _restored(work.request)
        try:
            if work.failures >= self.settings.max_failures:
                raise Internal(f"given up after {work.failures} attempts that were cut off")
            answer = await self._answer(request, request_id, caller)
        except DaarionError as error:
            delay = delay_after(error, work.failures, self.settings, work.stalled_s)
            if delay is None:
                if isinstance(error, CircuitOpen):  # it explains less than what opened the circuit
                    error = self._last_failures.get(request.model, error)
                return orjson.dumps(error.envelope(request_id)["error"]), False
            if delay.failed and (
                request.model in self._last_failures or len(self._last_failures) < MAX_REMEMBERED
            ):
                self._last_failures[request.model] = copy.copy(error)  # without its traceback
            await self._release(work, delay)
            return None, False
        return to_json(answer, exclude_none=True), True

    async def _finish(self, work: BatchWork, result: bytes, *, succeeded: bool) -> None:
        """Writes the result, retrying while the database is away; it counts if the lease holds."""
        ended = await retry(
            lambda: self._queue.finish(work, result, succeeded=succeeded),
            is_retryable,
            first_s=0.5,
            longest_s=10.0,
        )
        if ended:
            self._events.emit(
                "llm.batch_ended",
                batch_id=f"batch-{work.batch_id}",
                microdao_id=work.microdao_id,
            )

    async def _release(self, work: BatchWork, delay: Delay) -> None:
        """Tries to give the request back; if that fails, its lease ends anyway."""
        with contextlib.suppress(DaarionError):
            await self._queue.release(work, replace(delay, seconds=_jittered(delay.seconds)))


def _jittered(seconds: float) -> float:
    """Returns up to a fifth more, so that replicas and requests do not retry in step."""
    return seconds * random.uniform(1.0, 1.2)  # noqa: S311  # not a secret


def _prepared(requests: Sequence[BatchRequest], credential: str) -> tuple[str, list[NewItem]]:
    """Returns the one microDAO of all requests, and them as they are stored."""
    microdao_id = requests[0].metadata.microdao_id
    seen: dict[str, int] = {}
    for index, request in enumerate(requests):
        if request.metadata.microdao_id != microdao_id:
            raise InvalidRequest(
                f"requests[{index}].metadata.microdao_id: "
                "all requests of a batch are of one microDAO"
            )
        first = seen.setdefault(request.custom_id, index)
        if first != index:
            raise InvalidRequest(
                f"requests[{index}].custom_id: the same as that of requests[{first}]"
            )
        if request.cache is not None:
            cache_key(request)
    items = [
        NewItem(
            request.custom_id,
            _stored(request, credential),
            request.metadata.agent_id,
            request.metadata.channel_id,
        )
        for request in requests
    ]
    return microdao_id, items


def _stored(request: BatchRequest, credential: str) -> bytes:
    body: dict[str, Any] = request.model_dump(exclude_unset=True, exclude={"custom_id"})
    # Former versions read the credential beside the request, and wrote no caller.
    return orjson.dumps(
        {
            "credential": credential,
            "caller": {**acting().claims(), "credential": credential},
            "request": body,
        }
    )


def _restored(stored: str) -> tuple[ProxyRequest, Mapping[str, Any]]:
    """Returns a request and the claims of whoever submitted it."""
    content = orjson.loads(stored)
    caller = content.get("caller", {"sub": INTERNAL, "credential": content["credential"]})
    return ProxyRequest.model_validate(content["request"]), caller
