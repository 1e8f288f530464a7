"""The ports of engine, embedder and reranker over the handles of their deployments.

Imports neither vllm nor ray.serve.llm.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal, Protocol

import orjson
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from configs.engines.embedder import EmbedderSettings, RemoteEmbedderSettings
from configs.environment import Environment
from contracts.deadline import Deadline
from contracts.errors import DaarionError, EngineUnavailable, Internal, Overloaded
from contracts.llm.embeddings import (
    EmbeddingBatch,
    EmbeddingInput,
    EmbeddingKind,
    EmbeddingSpace,
    TokenEmbedder,
)
from contracts.llm.listings import EngineLoad
from contracts.llm.ports import Condition
from deployments.engines.app import APPLICATION, EMBEDDER, RERANKER
from providers.embeddings import OpenAIEmbedder

LOOKUP_INTERVAL_S = 1.0
RETRY_AFTER_S = 5.0
PROBE_S = 5.0
ENGINE = "the local engine"


class LateHandle:
    """The handle of a deployment that may start after its callers.

    It is looked up when needed, at most once in `LOOKUP_INTERVAL_S`.
    """

    def __init__(self, deployment: str, application: str, engine: str) -> None:
        self._deployment = deployment
        self._application = application
        self._engine = engine
        self._handle: DeploymentHandle | None = None
        self._looked_up = float("-inf")

    def found(self) -> DeploymentHandle:
        """Returns the handle. Raises EngineUnavailable while there is none."""
        if self._handle is None:
            now = time.monotonic()
            if now - self._looked_up < LOOKUP_INTERVAL_S:
                raise starting(self._engine)
            self._looked_up = now
            try:
                self._handle = serve.get_deployment_handle(
                    self._deployment, app_name=self._application
                )
            # KeyError: Serve knows no such deployment yet.
            except (RayServeException, KeyError):
                raise starting(self._engine) from None
        return self._handle


class EngineClient:
    """Calls `LocalLLM` of the application `engines`, or of one with a model of its own."""

    def __init__(self, deployment: str, application: str) -> None:
        self._handle = LateHandle(deployment, application, ENGINE)
        self.condition = Condition(starting().message)

    async def awake(self, deadline: Deadline) -> None:
        """Returns at once: this engine never sleeps."""

    async def chat(self, body: dict[str, Any], deadline: Deadline) -> dict[str, Any]:
        """Returns a chat completion; cancelling the call aborts the generation."""
        deadline.check()
        try:
            answer: dict[str, Any] = await self._handle.found().chat_dict.remote(body)
        except Exception as error:  # noqa: BLE001  # whatever Ray raises becomes a leaf
            raise unwrapped(error) from None
        return answer

    async def stream(
        self, body: dict[str, Any], deadline: Deadline
    ) -> AsyncIterator[dict[str, Any]]:
        """Yields chunks; closing the iterator aborts the generation."""
        deadline.check()
        try:
            chunks = self._handle.found().options(stream=True).chat_stream_dict.remote(body)
        except Exception as error:  # noqa: BLE001  # whatever Ray raises becomes a leaf
            raise unwrapped(error) from None
        finished = False
        try:
            async for chunk in chunks:
                yield orjson.loads(chunk)
            finished = True
        except Exception as error:  # noqa: BLE001  # whatever Ray raises becomes a leaf
            finished = True
            raise unwrapped(error) from None
        finally:
            if not finished:
                chunks.cancel()

    async def stats(self) -> EngineLoad | Literal["awake", "asleep"]:
        """Returns the engine's counters. Raises EngineUnavailable while there is no warm engine."""
        try:
            stats: dict[str, Any] = await self._handle.found().engine_stats.remote()
            if not stats["ready"]:
                raise starting()
        except Exception as error:  # noqa: BLE001  # whatever Ray raises becomes a leaf
            leaf = unwrapped(error)
            self.condition = Condition(leaf.message)
            raise leaf from None
        load = EngineLoad(max_running=stats["max_num_seqs"], **stats)
        self.condition = Condition(load=load)
        return load


class OpenEmbedder(TokenEmbedder, Protocol):
    """An embedder that can be probed and closed."""

    async def ping(self) -> None:
        """Raises EngineUnavailable or an UpstreamError while it cannot embed."""

    async def close(self) -> None: ...


def open_embedder(
    settings: EmbedderSettings, environment: Environment, *, own_vectors: bool = False
) -> OpenEmbedder:
    """Returns the configured embedder; to be called on the running event loop.

    Its vectors are memory's; with `own_vectors` the model's own.

    Raises:
        ConfigurationError: the environment variable with the endpoint's key is not set.
    """
    if isinstance(settings, RemoteEmbedderSettings):
        return OpenAIEmbedder(settings, environment.secret, environment.proxy_for)
    return EmbedderClient(
        settings.space if own_vectors else settings.memory_space, own_vectors=own_vectors
    )


class _TextModelClient:
    """Calls a deployment of the application `engines`; `model` is its name in errors."""

    def __init__(self, deployment: str, model: str) -> None:
        self._handle = LateHandle(deployment, APPLICATION, model)
        self._model = model

    async def stats(self) -> dict[str, Any]:
        """Returns the counters of one replica. Raises EngineUnavailable while none is ready."""
        stats: dict[str, Any] = await self._call("stats", Deadline.after(PROBE_S))
        return stats

    async def ping(self) -> None:
        """Raises EngineUnavailable while no replica is ready."""
        await self.stats()

    async def close(self) -> None:
        """Holds nothing open."""

    async def _call(
        self, method: str, deadline: Deadline, *arguments: object, **named: object
    ) -> Any:
        try:
            async with asyncio.timeout(deadline.remaining()):
                return await getattr(self._handle.found(), method).remote(*arguments, **named)
        except TimeoutError:
            raise deadline.exceeded() from None
        except Exception as error:  # noqa: BLE001  # whatever Ray raises becomes a leaf
            raise unwrapped(error, self._model) from None


class EmbedderClient(_TextModelClient):
    """Calls the deployment `Embedder`."""

    def __init__(self, space: EmbeddingSpace, *, own_vectors: bool = False) -> None:
        super().__init__(EMBEDDER, "the embedder")
        self._space = space
        self._own_vectors = own_vectors
        self.model_version = space.model_version
        self.dimension = space.dimension

    async def embed(
        self,
        texts: Sequence[EmbeddingInput],
        kind: EmbeddingKind,
        *,
        tenant: str,
        deadline: Deadline,
    ) -> EmbeddingBatch:
        """Returns one vector per text; see `contracts.llm.embeddings.TokenEmbedder`."""
        deadline.check()
        batch: EmbeddingBatch = await self._call(
            "embed",
            deadline,
            list(texts),
            kind,
            tenant,
            deadline.remaining(),
            own_vectors=self._own_vectors,
        )
        if batch.space != self._space:
            raise EngineUnavailable(
                "the embedder is being replaced by another version: retry", retry_after_s=PROBE_S
            )
        return batch


class RerankerClient(_TextModelClient):
    """Calls the deployment `Reranker`."""

    def __init__(self) -> None:
        super().__init__(RERANKER, "the reranker")

    async def score(
        self, question: str, texts: Sequence[str], *, tenant: str, deadline: Deadline
    ) -> list[float]:
        """Returns one score per text; see `contracts.llm.reranking.Reranker`."""
        deadline.check()
        scores: list[float] = await self._call(
            "score", deadline, question, list(texts), tenant, deadline.remaining()
        )
        return scores


def unwrapped(error: Exception, engine: str = ENGINE) -> DaarionError:
    """Returns the leaf that a replica raised, else one that says why `engine` gave no answer.

    Over a handle an error arrives wrapped, with a traceback in its text; callers see only the leaf.
    """
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, DaarionError):
        return cause
    if isinstance(error, BackPressureError):
        return Overloaded(f"the queue of {engine} is full: retry shortly", retry_after_s=1.0)
    if isinstance(error, RayTaskError):
        return Internal(f"{engine} failed in an unexpected way; its log has the details")
    if isinstance(error, RayError | RayServeException):
        return EngineUnavailable(
            f"{engine} is not reachable now: retry", retry_after_s=RETRY_AFTER_S
        )
    return Internal(f"{engine} could not be called; the log has the details")


def starting(engine: str = ENGINE) -> EngineUnavailable:
    """Returns the error while the deployment cannot be found yet."""
    return EngineUnavailable(f"{engine} is still starting: retry", retry_after_s=RETRY_AFTER_S)
