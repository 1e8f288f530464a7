"""The Engine port over LocalLLM's deployment handle. Imports neither vllm nor ray.serve.llm."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import orjson
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from contracts.deadline import Deadline
from contracts.errors import DaarionError, EngineUnavailable, Internal, Overloaded
from contracts.llm.listings import EngineLoad
from contracts.llm.ports import Condition

LOOKUP_INTERVAL_S = 1.0
RETRY_AFTER_S = 5.0
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
            except RayServeException:
                raise starting(self._engine) from None
        return self._handle


class EngineClient:
    """Calls `LocalLLM` of the application `engines`."""

    def __init__(self, deployment: str, application: str) -> None:
        self._handle = LateHandle(deployment, application, ENGINE)
        self.condition = Condition(starting().message)

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

    async def stats(self) -> EngineLoad:
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
