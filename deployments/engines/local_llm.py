"""`LocalLLM`: ray.serve.llm's server with methods that take and return plain data.

Callers reach it through its deployment handle and never import vllm, torch or ray.serve.llm.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from ray.serve.llm import LLMServer

from configs.engines.config import LocalLLMSettings, SamplingSettings, StructuredSettings
from configs.engines.placement import Placement
from contracts.errors import DaarionError
from deployments.engines.errors import engine_gone
from deployments.engines.requests import engine_request
from deployments.engines.server_config import llm_config
from deployments.engines.vllm_engine import PlainEngine
from deployments.engines.warm_up import warm_up_rounds

log = logging.getLogger("ray.serve")

START_TIMEOUT_S = 600.0
WARM_UP_TIMEOUT_S = 120.0


class LocalLLM(LLMServer):  # type: ignore[misc]  # Ray is not typed
    """One engine with its model.

    The constructor returns once the engine has answered: a replica that counts as running is warm.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits constructors
        self, settings: LocalLLMSettings, source: str, template: str | None, placement: Placement
    ) -> None:
        self._settings = settings
        self._sampling = settings.default_sampling
        self._structured = settings.structured
        self._aborted = 0
        self._warm_up_s: float | None = None
        await super().__init__(
            llm_config(settings, source, template, placement), engine_cls=PlainEngine
        )

    async def start(self) -> None:
        """Starts the engine and warms it up.

        Ray's own `start` would also report usage, through one more actor process.
        """
        self.engine = PlainEngine(self._llm_config)
        await asyncio.wait_for(self.engine.start(), START_TIMEOUT_S)
        self._warm_up_s = await self._warm_up()

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes new `default_sampling` and `structured` without a restart."""
        self._sampling = SamplingSettings.model_validate(user_config.get("default_sampling", {}))
        self._structured = StructuredSettings.model_validate(user_config.get("structured", {}))

    async def chat_dict(self, body: dict[str, Any]) -> dict[str, Any]:
        """Returns an OpenAI chat completion for an OpenAI chat completion request.

        Cancelling the call aborts the generation.

        Raises:
            InvalidRequest: vLLM refuses the request as the caller's mistake.
            ContextLengthExceeded: the request does not fit; with the numbers.
            Overloaded: more than `max_unfinished` requests are in the engine.
            EngineUnavailable: the engine has died.
        """
        request = self._request(body, stream=False)
        try:
            return await self._ready_engine().complete(request)
        except asyncio.CancelledError:
            self._aborted += 1
            raise

    async def chat_stream_dict(self, body: dict[str, Any]) -> AsyncIterator[str]:
        """Yields the completion's chunks as JSON text, one per token; the last carries the usage.

        Closing the iterator or cancelling the call aborts the generation. Raises as `chat_dict`,
        before the first chunk or in the middle.
        """
        request = self._request(body, stream=True)
        finished = False
        try:
            async for chunk in self._ready_engine().stream(request):
                yield chunk
            finished = True
        except (asyncio.CancelledError, GeneratorExit):
            self._aborted += not finished
            raise

    async def engine_stats(self) -> dict[str, Any]:
        """Returns the engine's state and counts; cheap, and answered while the engine is busy.

        Counts are totals since the replica's start; `steps` grows only while the engine computes.
        """
        engine: PlainEngine = self.engine
        counters = engine.counters
        unfinished = engine.unfinished
        running = min(counters.running, unfinished)
        return {
            "ready": self._warm_up_s is not None and not engine.dead,
            "model": self._settings.served_name,
            "max_model_len": counters.max_model_len,
            "max_num_seqs": self._settings.engine.max_num_seqs,
            "max_unfinished": self._settings.engine.max_unfinished,
            "running": running,
            "waiting": unfinished - running,
            "finished": counters.finished,
            "aborted": self._aborted,
            "prompt_tokens": counters.prompt_tokens,
            "generated_tokens": counters.generated_tokens,
            "steps": counters.steps,
            "warm_up_s": self._warm_up_s,
        }

    def _request(self, body: dict[str, Any], *, stream: bool) -> dict[str, Any]:
        return engine_request(
            body,
            served_name=self._settings.served_name,
            sampling=self._sampling,
            structured=self._structured,
            stream=stream,
        )

    def _ready_engine(self) -> PlainEngine:
        engine: PlainEngine | None = self.engine
        if engine is None or engine.dead:
            raise engine_gone()
        return engine

    async def _warm_up(self) -> float:
        """Generates once with every kind of request; returns the seconds that it took.

        Only the first answer must succeed. If the model refuses a kind of request, or the machine
        is too slow, the replica starts anyway and its first callers wait longer.
        """
        started = time.monotonic()
        rounds = warm_up_rounds(
            max_num_seqs=self._settings.engine.max_num_seqs,
            calls_tools=self._settings.tool_parser is not None,
        )
        # The first one as a whole answer; then all of them as streams.
        await asyncio.wait_for(self.chat_dict(rounds[0][0]), WARM_UP_TIMEOUT_S)
        try:
            async with asyncio.timeout(WARM_UP_TIMEOUT_S):
                for number, bodies in enumerate(rounds):
                    ended = await asyncio.gather(
                        *map(self._generate, bodies), return_exceptions=True
                    )
                    if refused := next(
                        (error for error in ended if isinstance(error, DaarionError)), None
                    ):
                        log.warning("warm-up: round %d was refused: %s", number, refused)
        except TimeoutError:
            log.warning("warm-up: not finished after %.0f s", WARM_UP_TIMEOUT_S)
        return round(time.monotonic() - started, 3)

    async def _generate(self, body: dict[str, Any]) -> None:
        own = {"ignore_eos": True} if body.get("ignore_eos") else {}
        async for _ in self._ready_engine().stream({**self._request(body, stream=True), **own}):
            pass
