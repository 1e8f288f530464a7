"""Where the product changes `ray.serve.llm`. Imported in the engine's replica only.

Written for Ray 2.60; see `deployments/graph/ray_patches.py` for the others and for the tests.
"""

from __future__ import annotations

from typing import Any

from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.serve.llm import LLMConfig
from vllm.config import VllmConfig
from vllm.platforms import current_platform
from vllm.v1.metrics.loggers import AggregateStatLoggerBase
from vllm.v1.metrics.stats import IterationStats, SchedulerStats


class SkipNodeInitialization(CallbackBase):  # type: ignore[misc]  # Ray is not typed
    """Keeps Ray from preparing nodes for a model that is a folder.

    There is nothing to download, and the preparation starts a task per node that imports the model
    libraries once more.
    """

    async def on_before_node_init(self) -> None:
        """Called by Ray before it fetches the model."""
        self.ctx.run_init_node = False


class EngineCounters(AggregateStatLoggerBase):  # type: ignore[misc]  # vLLM is not typed here
    """Totals since the start, and the requests that run as of the scheduler's last step.

    The engine reports only while it works: after the last request `running` keeps its last value,
    so callers cap it by the number of unfinished requests.
    """

    def __init__(self, vllm_config: VllmConfig, engine_indexes: list[int]) -> None:
        self.max_model_len: int = vllm_config.model_config.max_model_len
        self.steps = 0
        self.generated_tokens = 0
        self.prompt_tokens = 0
        self.finished = 0
        self._running = dict.fromkeys(engine_indexes, 0)

    @property
    def running(self) -> int:
        return sum(self._running.values())

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: Any = None,  # noqa: ARG002  # vLLM's signature
        engine_idx: int = 0,
    ) -> None:
        """Called by vLLM after each step of the engine, on the replica's event loop."""
        if scheduler_stats is not None:
            self._running[engine_idx] = scheduler_stats.num_running_reqs
        if iteration_stats is None:
            return
        self.steps += 1
        self.generated_tokens += iteration_stats.num_generation_tokens
        self.prompt_tokens += iteration_stats.num_prompt_tokens
        self.finished += len(iteration_stats.finished_requests)

    def log_engine_initialized(self) -> None:
        """Part of vLLM's interface."""


class CountedEngine(VLLMEngine):  # type: ignore[misc]  # Ray is not typed
    """Ray's engine with counters, and with one process instead of two on a CPU."""

    def __init__(self, llm_config: LLMConfig) -> None:
        super().__init__(llm_config)
        self._counters: EngineCounters | None = None

    @property
    def counters(self) -> EngineCounters:
        """Available once the engine has started."""
        assert self._counters is not None
        return self._counters

    def _start_async_llm_engine(
        self, vllm_engine_args: Any, vllm_engine_config: Any, placement_group: Any
    ) -> Any:
        # On a CPU Ray asks for a worker process beside the engine process. One worker does not need
        # it, and its imports take 10 s and 0.6 GB.
        if current_platform.is_cpu() and vllm_engine_config.parallel_config.world_size == 1:
            vllm_engine_config.parallel_config.distributed_executor_backend = "uni"
        client = super()._start_async_llm_engine(
            vllm_engine_args, vllm_engine_config, placement_group
        )
        self._counters = EngineCounters(vllm_engine_config, client.engine_core.engine_ranks_managed)
        client.logger_manager.stat_loggers.append(self._counters)
        return client
