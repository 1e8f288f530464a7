"""Where an engine's replica and workers run, and their process environment. No model library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_ACCELERATOR_SHARE = 0.001  # Ray's way to ask for a node of that type


@dataclass(frozen=True)
class Placement:
    """Resources of one engine.

    `num_cpus` is the replica's own share, `num_gpus` a worker's share of a GPU (0: a CPU engine).
    `accelerator_type` is one of Ray's names (`L4`, `H100`, …); None takes any GPU.
    """

    num_cpus: float
    num_gpus: float = 0
    accelerator_type: str | None = None
    tensor_parallel_size: int = 1

    @property
    def on_gpu(self) -> bool:
        return self.num_gpus > 0

    @property
    def strategy(self) -> str:
        """Ray's placement strategy: the workers of an engine share a node where they fit."""
        return "PACK"

    @property
    def worker_bundles(self) -> list[dict[str, float]]:
        """Each worker's share of a GPU; a CPU engine works inside the replica's own share."""
        if not self.on_gpu:
            return [{"CPU": self.num_cpus}]
        bundle = {"GPU": self.num_gpus}
        if self.accelerator_type is not None:
            bundle[f"accelerator_type:{self.accelerator_type}"] = _ACCELERATOR_SHARE
        return [dict(bundle) for _ in range(self.tensor_parallel_size)]

    @property
    def replica_bundles(self) -> list[dict[str, float]]:
        """The replica's placement group: its own share is part of the first worker's bundle."""
        if not self.on_gpu:
            return self.worker_bundles
        first, *others = self.worker_bundles
        return [{"CPU": self.num_cpus, **first}, *others]

    def actor_options(self, variables: dict[str, str]) -> dict[str, Any]:
        """Ray's options for the replica's process."""
        return {"num_cpus": self.num_cpus, "runtime_env": {"env_vars": variables}}


def process_variables(*, threads: int | None, cache: str, offline: bool) -> dict[str, str]:
    """Returns the variables of the engine's processes: no telemetry, caches in `cache`, `threads`.

    `offline` keeps the model hub's client from asking the network about a folder.
    """
    variables = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "VLLM_CACHE_ROOT": cache,
        "VLLM_LOGGING_LEVEL": "WARNING",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1" if offline else "0",
    }
    if threads is not None:
        # Left to itself vLLM binds one thread to one core on a machine with two.
        variables |= {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
    return variables
