"""Embeds stored chunks: a few lanes per process, each with one area's chunks at a time."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace

from common.periodic import start_periodic
from common.tasks import end_tasks
from common.tracing import spanned
from contracts.deadline import Deadline
from contracts.errors import DaarionError, InvalidRequest
from contracts.events import EventLog, failure_event
from contracts.llm.embeddings import Embedder
from contracts.memory.background import Claim, IngestionQueue

MAX_REFUSALS = 3


@dataclass(frozen=True, slots=True)
class IngestionSettings:
    """`lanes` of `batch` chunks; an idle lane polls every `poll_s` for other processes' stores.

    After a failure a lane waits `backoff_s`, doubled each time up to `backoff_max_s`.
    `embed_timeout_s` must be shorter than a lease.
    """

    lanes: int = 2
    batch: int = 16
    poll_s: float = 1.0
    backoff_s: float = 0.25
    backoff_max_s: float = 5.0
    embed_timeout_s: float = 45.0


class IngestionWorker:
    """Claims, embeds, writes. Holds no connection while the embedder works."""

    def __init__(
        self,
        queue: IngestionQueue,
        embedder: Embedder,
        events: EventLog,
        settings: IngestionSettings,
    ) -> None:
        self._queue = queue
        self._embedder = embedder
        self._events = events
        self._settings = settings
        self._work = asyncio.Event()
        self._progress = asyncio.Event()
        self._lanes: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Starts the lanes on the running event loop."""
        # After a defect the claim returns with the end of its lease.
        failed = failure_event(
            self._events,
            "memory.ingestion_waits",
            defect="memory.ingestion_defect",
            with_pause=True,
        )
        self._lanes = [
            start_periodic(
                self._step,
                self._settings.poll_s,
                failed,
                name=f"ingestion:{lane}",
                at_once=True,
                wake=self._work,
                retry_s=(self._settings.backoff_s, self._settings.backoff_max_s),
            )
            for lane in range(self._settings.lanes)
        ]

    async def close(self) -> None:
        """Stops the lanes and releases their claims."""
        await end_tasks(self._lanes)

    def wake(self) -> None:
        """Starts an idle lane at once; call it after a store."""
        self._work.set()

    async def progress(self, seconds: float) -> None:
        """Waits until a batch is written, at most `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._progress.wait()

    async def _step(self) -> bool:
        """Embeds one claim; returns whether there was one."""
        claim = await self._queue.lease(self._settings.batch)
        if claim is None:
            return False
        if claim.chunks:
            await spanned("memory.ingest", self._embed, claim)
        return True

    async def _embed(self, claim: Claim) -> None:
        try:
            vectors = await spanned(
                "memory.embed",
                self._embedder.embed,
                [chunk.content for chunk in claim.chunks],
                "passage",
                tenant=f"{claim.area.microdao_id}/{claim.area.agent_id}",
                deadline=Deadline.after(self._settings.embed_timeout_s),
            )
            await self._queue.finish(claim, vectors)
        except InvalidRequest:
            await self._refused(claim)
        except BaseException:
            await self._release(claim)
            raise
        else:
            self._signal_progress()

    async def _refused(self, claim: Claim) -> None:
        """Finds the text that the embedder refuses; drops it from the queue after MAX_REFUSALS."""
        if len(claim.chunks) > 1:
            for chunk in claim.chunks:
                await self._embed(replace(claim, chunks=[chunk]))
            return
        given_up = await self._queue.refuse(claim, MAX_REFUSALS)
        if given_up:
            self._events.emit("memory.not_embeddable", **claim.area.identity, chunks=given_up)
            self._signal_progress()

    async def _release(self, claim: Claim) -> None:
        """Best effort: without it the lease ends later."""
        with contextlib.suppress(DaarionError):
            await self._queue.release(claim)

    def _signal_progress(self) -> None:
        self._progress.set()
        self._progress = asyncio.Event()
