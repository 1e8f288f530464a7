"""The deployment `Embedder`: texts to vectors, in batches from two fair lanes.

Callers reach it through its handle (deployments/engines/clients.py) and never import torch.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from configs.engines.embedder import LocalEmbedderSettings
from contracts.deadline import Deadline
from contracts.errors import EngineUnavailable, InvalidRequest
from contracts.llm.embeddings import (
    MAX_TEXTS_PER_CALL,
    EmbeddingBatch,
    EmbeddingInput,
    EmbeddingKind,
)
from deployments.engines.lanes import FairLanes, Waiting
from deployments.engines.sentence_encoder import SentenceEncoder

CHARS_PER_TOKEN = 3
MAX_BATCH_S = 300.0


class LocalEmbedder:
    """One model with its lanes.

    The model works in a thread of its own, so that calls are accepted, ordered and refused
    meanwhile.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, settings: LocalEmbedderSettings, source: str
    ) -> None:
        self._settings = settings
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder")
        loop = asyncio.get_running_loop()
        self._encoder = await loop.run_in_executor(self._thread, SentenceEncoder, settings, source)
        self._lanes = FairLanes(settings.batch, settings.queue)
        self._arrived = asyncio.Event()
        self._batch_began: float | None = None
        self._embedded = {"query": 0, "passage": 0}
        self._tokens = 0
        await self._warm_up()
        self._dispatcher = asyncio.create_task(self._dispatch())

    async def embed(
        self,
        inputs: Sequence[EmbeddingInput],
        kind: EmbeddingKind,
        tenant: str,
        seconds: float,
        *,
        own_vectors: bool = False,
    ) -> EmbeddingBatch:
        """Returns one vector per text.

        The vectors are memory's; with `own_vectors` the model's own, as any server of the model
        gives them. `seconds` remain of the caller's deadline.

        Raises:
            InvalidRequest: no text, more than MAX_TEXTS_PER_CALL, or tokens of another tokenizer.
            Overloaded: the tenant's share of the queue, or the whole queue, is full.
            DeadlineExceeded: the vectors were not ready in time; texts still waiting are dropped.
            EngineUnavailable: the model failed on this batch.
        """
        if not 0 < len(inputs) <= MAX_TEXTS_PER_CALL:
            raise InvalidRequest(f"send from 1 to {MAX_TEXTS_PER_CALL} texts a call")
        deadline = Deadline.after(seconds)
        texts = await self._texts_of(inputs)
        items = [self._waiting(text, kind, tenant, deadline) for text in texts]
        self._lanes.put(items)
        self._arrived.set()
        rows = await self._answers(items, deadline)
        vectors = [data for data, _ in rows]
        space = self._settings.space if own_vectors else self._settings.memory_space
        if not own_vectors:
            vectors = self._encoder.neutral(texts, vectors)
        return EmbeddingBatch(
            b"".join(vectors), space.dimension, space.model_version, sum(count for _, count in rows)
        )

    async def stats(self) -> dict[str, Any]:
        """Returns the embedder's state and its counts since the replica's start."""
        return {
            "ready": True,
            "model_version": self._settings.memory_space.model_version,
            "dimension": self._settings.dimension,
            "waiting": self._lanes.waiting,
            "embedded": dict(self._embedded),
            "tokens": self._tokens,
        }

    async def check_health(self) -> None:
        """Called by Serve, which replaces the replica when this raises.

        Raises:
            EngineUnavailable: the dispatcher has ended, or a batch hangs.
        """
        if self._dispatcher.done() or (
            self._batch_began is not None and time.monotonic() - self._batch_began > MAX_BATCH_S
        ):
            raise EngineUnavailable("the embedder hangs")

    async def _texts_of(self, inputs: Sequence[EmbeddingInput]) -> list[str]:
        texts = [given for given in inputs if isinstance(given, str)]
        if len(texts) == len(inputs):
            return texts
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._encoder.texts_of, inputs
        )

    def _waiting(self, text: str, kind: EmbeddingKind, tenant: str, deadline: Deadline) -> Waiting:
        cost = min(self._settings.max_tokens, 4 + len(text) // CHARS_PER_TOKEN)
        return Waiting(
            text, kind, tenant, cost, deadline.at, asyncio.get_running_loop().create_future()
        )

    async def _answers(self, items: list[Waiting], deadline: Deadline) -> list[tuple[bytes, int]]:
        try:
            async with asyncio.timeout(deadline.remaining()):
                return await asyncio.gather(*(item.answer for item in items))
        except TimeoutError:
            raise deadline.exceeded() from None
        finally:
            for item in items:
                item.answer.cancel()
            self._lanes.forget(items)

    async def _dispatch(self) -> None:
        while True:
            await self._arrived.wait()
            batch = self._lanes.next_batch()
            if batch:
                await self._answer(batch)
            elif not self._lanes.waiting:
                self._arrived.clear()

    async def _answer(self, batch: list[Waiting]) -> None:
        """Encodes one batch and answers its callers."""
        self._batch_began = time.monotonic()
        try:
            answers = await self._encoded([item.text for item in batch], batch[0].kind)
        except Exception:  # noqa: BLE001  # the library may raise anything
            for item in batch:
                if not item.answer.done():
                    item.answer.set_exception(
                        EngineUnavailable("the embedder failed on this batch: retry")
                    )
            return
        finally:
            self._batch_began = None
        self._embedded[batch[0].kind] += len(batch)
        self._tokens += sum(count for _, count in answers)
        for item, answer in zip(batch, answers, strict=True):
            if not item.answer.done():
                item.answer.set_result(answer)

    async def _encoded(self, texts: list[str], kind: EmbeddingKind) -> list[tuple[bytes, int]]:
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._encoder.encode, texts, kind
        )

    async def _warm_up(self) -> None:
        """Encodes a short and a full-length text: the first of each allocates lazily."""
        await self._encoded(["warm up"], "query")
        await self._encoded(["warm " * self._settings.max_tokens], "passage")
