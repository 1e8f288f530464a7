"""The deployment `Reranker`: a cross-encoder scores texts for a question, in batches.

Callers reach it through its handle (deployments/engines/clients.py) and never import torch.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder

from configs.engines.embedder import QueueSettings, RerankerSettings
from contracts.deadline import Deadline
from contracts.errors import ConfigurationError, InvalidRequest
from contracts.llm.embeddings import MAX_TEXTS_PER_CALL, EmbeddingKind
from deployments.engines.lanes import Batcher, FairLanes, estimated_tokens
from deployments.engines.sentence_encoder import cut_text, load_model

Pair = tuple[str, str]


class LocalReranker:
    """One cross-encoder with its queue; the model works in a thread of its own."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, settings: RerankerSettings, source: str
    ) -> None:
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scorer")
        self._scorer = await asyncio.get_running_loop().run_in_executor(
            thread, PairScorer, settings, source
        )
        self._batcher = Batcher(
            FairLanes(settings.batch, QueueSettings(**settings.queue.model_dump())),
            thread,
            self._scorer.score,
            self._scorer.cost,
            "reranker",
        )

    async def score(
        self, question: str, texts: Sequence[str], tenant: str, seconds: float
    ) -> list[float]:
        """Returns one score in 0..1 per text. `seconds` remain of the caller's deadline.

        Raises:
            InvalidRequest: no text, or more than MAX_TEXTS_PER_CALL.
            Overloaded: the tenant's share of the queue, or the whole queue, is full.
            DeadlineExceeded: the scores were not ready in time; texts still waiting are dropped.
            EngineUnavailable: the model failed on this batch.
        """
        if not 0 < len(texts) <= MAX_TEXTS_PER_CALL:
            raise InvalidRequest(f"send from 1 to {MAX_TEXTS_PER_CALL} texts a call")
        return await self._batcher.answers(
            [(question, text) for text in texts], "query", tenant, Deadline.after(seconds)
        )

    async def stats(self) -> dict[str, Any]:
        """Returns the reranker's state."""
        return {"ready": True, "waiting": self._batcher.lanes.waiting}

    async def check_health(self) -> None:
        """Called by Serve, which replaces the replica when this raises.

        Raises:
            EngineUnavailable: the dispatcher has ended, or a batch hangs.
        """
        self._batcher.check()


class PairScorer:
    """Loads and warms up the model when constructed. Not thread-safe: one thread scores.

    Raises:
        ConfigurationError: the model cannot be loaded, or is no cross-encoder with one score.
    """

    def __init__(self, settings: RerankerSettings, source: str) -> None:
        self._bounds = settings.batch
        self._model = load_model(CrossEncoder, "reranker", settings, source)
        if not _is_cross_encoder(self._model):
            raise ConfigurationError(
                f"engines.yaml: reranker.model: `{settings.model}` is no cross-encoder with one "
                "score for a question and a text"
            )
        self.max_tokens = self._model.max_seq_length = min(
            settings.max_tokens, self._model.max_seq_length or settings.max_tokens
        )
        # A pair of full length: the first one allocates lazily.
        self.score([("warm up", "warm " * self.max_tokens)])

    def cost(self, pair: Pair) -> int:
        """Returns about how many tokens the model reads of a pair."""
        return min(self.max_tokens, sum(map(estimated_tokens, pair)))

    def score(self, pairs: Sequence[Pair], _kind: EmbeddingKind = "query") -> list[float]:
        """Returns a score in 0..1 per pair.

        Raises:
            ValueError: the model's outputs are not numbers.
        """
        # The library sorts by length, so a long pair is padded with few short ones.
        fitting = self._bounds.max_tokens // max(map(self.cost, pairs))
        scores = self._model.predict(
            [tuple(cut_text(text, self.max_tokens) for text in pair) for pair in pairs],
            batch_size=max(1, min(self._bounds.max_texts, fitting)),
            # Some models name another function, whose values have no common range.
            activation_fn=torch.nn.Sigmoid(),
            show_progress_bar=False,
        )
        if not np.isfinite(scores).all():
            raise ValueError("the cross-encoder's scores are not finite")
        return [float(score) for score in scores]


def _is_cross_encoder(model: CrossEncoder) -> bool:
    """Whether the weights have a trained head with one output.

    To any other model the library adds a head with random weights, and says so only in its log.
    `module_kwargs` is filled from a folder that the library itself saved as a cross-encoder.
    """
    kinds = model.config.architectures or []
    trained = model.module_kwargs or any(k.endswith("ForSequenceClassification") for k in kinds)
    return bool(trained) and model.num_labels == 1
