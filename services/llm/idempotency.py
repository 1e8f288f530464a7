"""`Idempotency-Key`: a repeated request gets the first answer, at any replica."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID

import orjson
from pydantic_core import to_json

from common.periodic import repeating
from common.retry import retry
from common.tasks import end_tasks
from contracts.deadline import Deadline
from contracts.errors import (
    ContentFiltered,
    ContextLengthExceeded,
    DaarionError,
    InvalidRequest,
    Overloaded,
    UpstreamRejected,
    is_retryable,
)
from contracts.events import EventLog, failure_event
from contracts.llm.answers import ProxyResponse
from contracts.llm.idempotency import Granted, IdempotencyStore, KeyUse, Settled
from contracts.llm.requests import MAX_TIMEOUT_S, ProxyRequest
from services.llm.cache import canonical_body

MAX_KEY_CHARS = 1_024
MAX_RUNNING = 1_000

_REFUSALS: dict[str, type[InvalidRequest]] = {
    leaf.type: leaf
    for leaf in (InvalidRequest, ContextLengthExceeded, ContentFiltered, UpstreamRejected)
}


@dataclass(frozen=True, slots=True)
class IdempotencyTimes:
    """Seconds: an attempt's lease, the interval of its renewals, the poll interval of waiters."""

    lease_s: float = 15.0
    renew_every_s: float = 4.0
    poll_every_s: float = 0.05
    max_poll_s: float = 0.5
    settle_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Recorded:
    """The body of an answer as JSON, and whether it was stored by an earlier call."""

    body: bytes
    replayed: bool


class Idempotency:
    """Runs calls with a key.

    The first call runs to its end even when its caller leaves, so that a repetition finds the
    answer. Answers and refusals of the request itself settle the key; any other failure frees it.
    `retention_s` is how long an answer is kept.
    """

    def __init__(
        self,
        store: IdempotencyStore,
        events: EventLog,
        retention_s: Callable[[], float],
        times: IdempotencyTimes | None = None,
    ) -> None:
        self._store = store
        self._events = events
        self._retention_s = retention_s
        self._times = times or IdempotencyTimes()
        self._running: set[asyncio.Task[bytes | None]] = set()

    async def run(
        self, request: ProxyRequest, key: str, call: Callable[[], Awaitable[ProxyResponse]]
    ) -> Recorded:
        """Returns the answer stored for the key; without one, runs `call` and stores its answer.

        Raises:
            InvalidRequest: the key is too long, or the stored refusal.
            IdempotencyConflict: the key was used for another request.
            DeadlineExceeded: the running call did not end within this caller's deadline.
            Overloaded: too many such calls run here.
            DatabaseUnavailable: the key cannot be looked up, so nothing was called.
            DaarionError: what `call` raised.
        """
        use = key_use(request, key)
        deadline = Deadline.after(request.timeout_s or MAX_TIMEOUT_S)
        pause = self._times.poll_every_s
        while True:
            found = await self._store.begin(use, self._times.lease_s, self._retention_s())
            if isinstance(found, Settled):
                return Recorded(_read(found.answer), replayed=True)
            if isinstance(found, Granted):
                answer = await self._started(use, found.lease, call)
                if answer is not None:
                    return Recorded(answer, replayed=False)
                continue  # another attempt took the key over and stores the answer
            deadline.check()
            await asyncio.sleep(deadline.at_most(pause))
            pause = min(2 * pause, self._times.max_poll_s)

    async def close(self) -> None:
        """Ends the running calls and releases their keys."""
        await end_tasks(self._running)

    async def _started(
        self, use: KeyUse, lease: UUID, call: Callable[[], Awaitable[ProxyResponse]]
    ) -> bytes | None:
        if len(self._running) >= MAX_RUNNING:
            await self._release(use, lease)
            raise Overloaded(
                "this replica runs as many calls with an Idempotency-Key as it may: retry shortly",
                retry_after_s=1.0,
            )
        task = asyncio.create_task(self._attempt(use, lease, call))
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[bytes | None]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # read here, because its caller may have left

    async def _attempt(
        self, use: KeyUse, lease: UUID, call: Callable[[], Awaitable[ProxyResponse]]
    ) -> bytes | None:
        """Returns the body; None when another attempt took the key over. Raises as `call`."""

        async def renew() -> None:
            await self._store.renew(use, lease, self._times.lease_s)

        failed = failure_event(
            self._events, None, defect="llm.idempotency_defect", microdao_id=use.microdao_id
        )
        try:
            async with repeating(renew, self._times.renew_every_s, failed):
                answer = await call()
        except InvalidRequest as error:
            refusal = {"type": error.type, "message": error.message, "details": error.details}
            await self._settled(use, lease, orjson.dumps({"refusal": refusal}))
            raise
        except BaseException:
            await self._release(use, lease)
            raise
        body = to_json(answer, exclude_none=True)
        return (
            body
            if await self._settled(use, lease, orjson.dumps({"answer": orjson.Fragment(body)}))
            else None
        )

    async def _settled(self, use: KeyUse, lease: UUID, answer: bytes) -> bool:
        """Stores the answer; returns False when another attempt took the key over.

        An answer that cannot be stored is still returned to its caller.
        """
        try:
            return await retry(
                lambda: self._store.settle(use, lease, answer, self._retention_s()),
                is_retryable,
                within_s=self._times.settle_s,
            )
        except DaarionError as error:
            self._events.emit(
                "llm.idempotency_not_stored", microdao_id=use.microdao_id, error=error.type
            )
            return True

    async def _release(self, use: KeyUse, lease: UUID) -> None:
        """Tries to release the key; if that fails, its lease ends anyway."""
        with contextlib.suppress(DaarionError):
            await self._store.release(use, lease)


def key_use(request: ProxyRequest, key: str) -> KeyUse:
    """Returns the use of a key: its owner, its hash and the request's fingerprint.

    A key belongs to one agent; `timeout_s` is not part of the fingerprint.

    Raises:
        InvalidRequest: the key is longer than 1,024 characters.
    """
    if len(key) > MAX_KEY_CHARS:
        raise InvalidRequest(f"the Idempotency-Key is longer than {MAX_KEY_CHARS} characters")
    caller = request.metadata
    owner = hashlib.sha256(caller.agent_id.encode()).digest()
    own_fields = orjson.dumps([caller.channel_id, request.cache.ttl_s if request.cache else None])
    return KeyUse(
        caller.microdao_id,
        hashlib.sha256(owner + key.encode("utf-8", "surrogatepass")).digest(),
        hashlib.sha256(hashlib.sha256(own_fields).digest() + canonical_body(request)).digest(),
        caller.agent_id,
        caller.channel_id,
    )


def _read(stored: str) -> bytes:
    """Returns the stored body, or raises the stored refusal."""
    content = orjson.loads(stored)
    refusal = content.get("refusal")
    if refusal is not None:
        raise _REFUSALS.get(refusal["type"], InvalidRequest)(
            refusal["message"], details=refusal["details"]
        )
    return orjson.dumps(content["answer"])
