"""Counts the engine's work, from the statistics that vLLM sends with every step."""

from __future__ import annotations

from typing import Any

from vllm.config import VllmConfig
from vllm.v1.metrics.loggers import AggregateStatLoggerBase
from vllm.v1.metrics.stats import IterationStats, SchedulerStats


class EngineCounters(AggregateStatLoggerBase):  # type: ignore[misc]  # vLLM is not typed here
    """Totals since the start, and the scheduler's queues as of its last step.

    The engine reports only while it works: after the last request `running` and `waiting` keep
    their last values, so callers cap them by the number of unfinished requests.
    """

    def __init__(self, vllm_config: VllmConfig, engine_indexes: list[int]) -> None:
        self.max_model_len: int = vllm_config.model_config.max_model_len
        self.steps = 0
        self.generated_tokens = 0
        self.prompt_tokens = 0
        self.finished = 0
        self._running = dict.fromkeys(engine_indexes, 0)
        self._waiting = dict.fromkeys(engine_indexes, 0)

    @property
    def running(self) -> int:
        return sum(self._running.values())

    @property
    def waiting(self) -> int:
        return sum(self._waiting.values())

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
            self._waiting[engine_idx] = (
                scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs
            )
        if iteration_stats is None:
            return
        self.steps += 1
        self.generated_tokens += iteration_stats.num_generation_tokens
        self.prompt_tokens += iteration_stats.num_prompt_tokens
        self.finished += len(iteration_stats.finished_requests)

    def log_engine_initialized(self) -> None:
        """Part of vLLM's interface."""
