"""The arguments of the application `engines`: where engines run, and with what environment.

Imports no model library.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from configs.engines.config import FileName
from configs.engines.placement import Placement

STRATEGY = "PACK"
"""Ray's placement strategy: the workers of an engine share a node where they fit."""


class EnginesArgs(Placement):
    """`args` of the application. `settings_file` is a file of the configuration directory.

    The reranker's shares count where that file has a section `reranker`.
    """

    settings_file: FileName = "engines.yaml"
    embedder_num_cpus: Annotated[float, Field(gt=0)] = 0.3
    embedder_num_gpus: Annotated[float, Field(ge=0, le=1)] = 0
    reranker_num_cpus: Annotated[float, Field(gt=0)] = 0.3
    reranker_num_gpus: Annotated[float, Field(ge=0, le=1)] = 0


def process_variables(*, threads: int | None, cache: str, offline: bool) -> dict[str, str]:
    """Returns the variables of the engine's processes: no telemetry, caches in `cache`, `threads`.

    `offline` keeps the model hub's client from asking the network about a folder.
    """
    variables = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # With an endpoint of the graph's traces, vLLM's processes would send spans of their own.
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "",
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
