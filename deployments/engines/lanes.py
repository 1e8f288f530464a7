"""Batches of texts for one model: queries before passages, tenants in turns, all bounded."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from configs.engines.embedder import PassSettings, QueueSettings
from contracts.deadline import Deadline
from contracts.errors import EngineUnavailable, Overloaded
from contracts.llm.embeddings import EmbeddingKind

RETRY_WHEN_FULL_S = 1.0
CHARS_PER_TOKEN = 3
MAX_BATCH_S = 300.0


@dataclass(eq=False, slots=True)
class Waiting:
    """One text in the queue, as the model takes it.

    `cost` estimates its tokens, `until` is on the monotonic clock.
    """

    text: Any
    kind: EmbeddingKind
    tenant: str
    cost: int
    until: float
    answer: asyncio.Future[Any]

    @property
    def given_up(self) -> bool:
        """Whether the caller has left or its deadline has passed."""
        return self.answer.done() or time.monotonic() >= self.until


class _Lane:
    """Waiting texts of one kind, one queue per tenant; tenants take turns text by text."""

    def __init__(self) -> None:
        self._tenants: OrderedDict[str, deque[Waiting]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._tenants.values()))

    def held_by(self, tenant: str) -> int:
        return len(self._tenants.get(tenant, ()))

    def put(self, item: Waiting) -> None:
        self._tenants.setdefault(item.tenant, deque()).append(item)

    def peek(self) -> Waiting | None:
        return next(iter(self._tenants.values()))[0] if self._tenants else None

    def remove(self, tenant: str, gone: set[Waiting]) -> None:
        """Removes `gone` from the tenant's queue; the tenant keeps its turn."""
        if kept := deque(item for item in self._tenants.get(tenant, ()) if item not in gone):
            self._tenants[tenant] = kept
        else:
            self._tenants.pop(tenant, None)

    def pop(self) -> None:
        tenant, queue = next(iter(self._tenants.items()))
        queue.popleft()
        if queue:
            self._tenants.move_to_end(tenant)
        else:
            del self._tenants[tenant]


class FairLanes:
    """Two bounded lanes and the rule between them.

    A batch holds texts of one lane. Queries go first; while both lanes wait, passages get
    `passage_share` of the work, in tokens, so that steady queries never stop ingestion.
    """

    def __init__(self, batch: PassSettings, queue: QueueSettings) -> None:
        self._batch = batch
        self._queue = queue
        self._lanes: dict[EmbeddingKind, _Lane] = {"query": _Lane(), "passage": _Lane()}
        self._credit = 0.0

    @property
    def waiting(self) -> int:
        """Texts in both lanes."""
        return sum(map(len, self._lanes.values()))

    def put(self, items: Sequence[Waiting]) -> None:
        """Queues all texts of one call (one tenant, one kind), or none. Raises Overloaded."""
        if not items:
            return
        tenant = items[0].tenant
        held = sum(lane.held_by(tenant) for lane in self._lanes.values())
        if held + len(items) > self._queue.max_texts_per_tenant:
            raise Overloaded(
                "too many texts of this tenant wait for the model: retry shortly",
                retry_after_s=RETRY_WHEN_FULL_S,
            )
        if self.waiting + len(items) > self._queue.max_texts:
            raise Overloaded(
                "too many texts wait for the model: retry shortly", retry_after_s=RETRY_WHEN_FULL_S
            )
        for item in items:
            self._lanes[item.kind].put(item)

    def forget(self, items: Sequence[Waiting]) -> None:
        """Drops the texts of one call that still wait, so that they count towards no bound."""
        if items:
            for lane in self._lanes.values():
                lane.remove(items[0].tenant, set(items))

    def next_batch(self) -> list[Waiting]:
        """Returns the next texts, all of one kind, and drops those that were given up."""
        lane, kind = self._chosen()
        taken: list[Waiting] = []
        tokens = 0
        while (item := lane.peek()) is not None and len(taken) < self._batch.max_texts:
            if not item.given_up:
                if taken and tokens + item.cost > self._batch.max_tokens:
                    break
                taken.append(item)
                tokens += item.cost
            lane.pop()
        self._account(kind, tokens)
        return taken

    def _chosen(self) -> tuple[_Lane, EmbeddingKind]:
        queries, passages = self._lanes["query"], self._lanes["passage"]
        if passages and (not queries or self._credit >= self._batch.max_tokens):
            return passages, "passage"
        return queries, "query"

    def _account(self, kind: EmbeddingKind, tokens: int) -> None:
        """Credits waiting passages for each query token; a batch of passages uses its tokens up."""
        if kind == "passage":
            self._credit = max(0.0, self._credit - tokens)
        elif self._lanes["passage"]:
            share = self._queue.passage_share
            self._credit += tokens * share / (1 - share)


class Batcher:
    """Answers the texts of many calls in batches. Construct it on the event loop.

    `run` answers one batch, texts of one kind, in `thread`; `cost` estimates a text's tokens;
    `model` is the model's name in errors.
    """

    def __init__(
        self,
        lanes: FairLanes,
        thread: Executor,
        run: Callable[[list[Any], EmbeddingKind], Sequence[Any]],
        cost: Callable[[Any], int],
        model: str,
    ) -> None:
        self.lanes = lanes
        self._thread = thread
        self._run = run
        self._cost = cost
        self._model = model
        self._arrived = asyncio.Event()
        self._batch_began: float | None = None
        self._dispatcher = asyncio.create_task(self._dispatch())

    async def answers(
        self, texts: Sequence[Any], kind: EmbeddingKind, tenant: str, deadline: Deadline
    ) -> list[Any]:
        """Returns one answer per text.

        Raises:
            Overloaded: the tenant's share of the queue, or the whole queue, is full.
            DeadlineExceeded: the answers were not ready in time; texts still waiting are dropped.
            EngineUnavailable: the model failed on this batch.
        """
        loop = asyncio.get_running_loop()
        items = [
            Waiting(text, kind, tenant, self._cost(text), deadline.at, loop.create_future())
            for text in texts
        ]
        self.lanes.put(items)
        self._arrived.set()
        try:
            async with asyncio.timeout(deadline.remaining()):
                return await asyncio.gather(*(item.answer for item in items))
        except TimeoutError:
            raise deadline.exceeded() from None
        finally:
            for item in items:
                item.answer.cancel()
            self.lanes.forget(items)

    def check(self) -> None:
        """Raises EngineUnavailable when the dispatcher has ended, or a batch hangs."""
        if self._dispatcher.done() or (
            self._batch_began is not None and time.monotonic() - self._batch_began > MAX_BATCH_S
        ):
            raise EngineUnavailable(f"the {self._model} hangs")

    async def _dispatch(self) -> None:
        while True:
            await self._arrived.wait()
            batch = self.lanes.next_batch()
            if batch:
                await self._answer(batch)
            elif not self.lanes.waiting:
                self._arrived.clear()

    async def _answer(self, batch: list[Waiting]) -> None:
        """Runs one batch and answers its callers."""
        self._batch_began = time.monotonic()
        try:
            answers = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._run, [item.text for item in batch], batch[0].kind
            )
        except Exception:  # noqa: BLE001  # the library may raise anything
            for item in batch:
                if not item.answer.done():
                    item.answer.set_exception(
                        EngineUnavailable(f"the {self._model} failed on this batch: retry")
                    )
            return
        finally:
            self._batch_began = None
        for item, answer in zip(batch, answers, strict=True):
            if not item.answer.done():
                item.answer.set_result(answer)


def estimated_tokens(text: str) -> int:
    """Returns about how many tokens `text` has."""
    return 4 + len(text) // CHARS_PER_TOKEN
