"""Translates `engines.yaml` for ray.serve.llm. Imported in the engine's replica only."""

from __future__ import annotations

from typing import Any

from ray.serve.llm import LLMConfig

from configs.engines.config import LocalLLMSettings
from configs.engines.model_source import is_hub_id
from configs.engines.placement import Placement
from deployments.engines.placement import STRATEGY
from deployments.engines.ray_patches import SkipNodeInitialization

_MIB = 1 << 20


def llm_config(
    settings: LocalLLMSettings, source: str, template: str | None, placement: Placement
) -> LLMConfig:
    """Returns the configuration of one engine; `template` is the chat template's text."""
    options: dict[str, Any] = {}
    if not is_hub_id(source):
        options["callback_config"] = {"callback_class": SkipNodeInitialization}
    return LLMConfig(
        model_loading_config={"model_id": settings.served_name, "model_source": source},
        accelerator_type=placement.accelerator_type,
        accelerator_config={"kind": "gpu" if placement.on_gpu else "cpu"},
        placement_group_config={
            "bundles": placement.worker_bundles,
            "strategy": STRATEGY,
        },
        engine_kwargs=engine_kwargs(settings, template, placement),
        # vLLM's own metrics cost CPU at each step; nobody scrapes them on a laptop.
        log_engine_metrics=placement.on_gpu,
        **options,
    )


def engine_kwargs(
    settings: LocalLLMSettings, template: str | None, placement: Placement
) -> dict[str, Any]:
    """Returns vLLM's arguments by its own names."""
    engine = settings.engine
    kwargs: dict[str, Any] = {
        "dtype": engine.dtype,
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "max_num_queued_reqs": engine.max_unfinished,
        "enforce_eager": engine.enforce_eager,
        "gpu_memory_utilization": engine.gpu_memory_utilization,
        "tensor_parallel_size": placement.tensor_parallel_size,
        "trust_remote_code": False,
        # With white space allowed a small model writes it for ever inside a JSON answer.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        "exclude_tools_when_tool_choice_none": True,
    }
    if engine.kv_cache_mb is not None:
        kwargs["kv_cache_memory_bytes"] = engine.kv_cache_mb * _MIB
    if template is not None:
        kwargs["chat_template"] = template
    if settings.tool_parser is not None:
        kwargs |= {"enable_auto_tool_choice": True, "tool_call_parser": settings.tool_parser}
    if settings.reasoning_parser is not None:
        kwargs["reasoning_parser"] = settings.reasoning_parser
    return kwargs | engine.extra
