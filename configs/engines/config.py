"""The typed model of `engines.yaml`; its `embedder` and `reranker` are in `embedder.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from configs.engines.embedder import EmbedderSettings, RerankerSettings
from configs.engines.model_source import DEFAULT_MODEL, find_model
from configs.engines.placement import Placement
from configs.environment import Environment
from configs.yaml_files import load_yaml
from contracts.errors import ConfigurationError
from contracts.shapes import Strict

OTHER_MODEL_KV_CACHE_MB = 2_048
"""Holds 4,096 tokens at up to 512 KiB each: 7 billion parameters without grouped queries.
Qwen3-4B takes 144 KiB."""
DEFAULT_FOLDER = Path("models", "smollm2-135m-instruct")

_MANAGED_ARGUMENTS = frozenset({
    "model", "served_model_name", "tokenizer", "dtype", "max_model_len", "max_num_seqs",
    "max_num_queued_reqs", "enforce_eager", "kv_cache_memory_bytes", "gpu_memory_utilization",
    "tensor_parallel_size", "distributed_executor_backend", "chat_template",
    "enable_auto_tool_choice", "tool_call_parser", "reasoning_parser", "structured_outputs_config",
    "disable_log_stats", "trust_remote_code",
})  # fmt: skip

Positive = Annotated[int, Field(ge=1)]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+\.yaml$")]
"""A file of the configuration directory, as `args` of an application name it."""
ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
WhenAsleep = Literal["wait", "fall_back", "refuse"]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1_024, strip_whitespace=True)]


class SamplingSettings(Strict):
    """Defaults of a request; null takes the model's own from its `generation_config.json`."""

    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)] | None = None
    max_tokens: Positive | None = None
    """Bound of an answer in tokens; null: the rest of the context."""


class StructuredSettings(Strict):
    """Bounds for JSON schemas without, so that a small model cannot loop inside one value.

    null adds no bound.
    """

    max_string_length: Annotated[int, Field(ge=16, le=100_000)] | None = None
    max_items: Annotated[int, Field(ge=1, le=10_000)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)] | None = None


class EngineArguments(Strict):
    """vLLM's engine arguments; `extra` passes further ones through by vLLM's own names."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    max_model_len: Annotated[int, Field(ge=256)]
    max_num_seqs: Annotated[int, Field(ge=1, le=4_096)]
    max_unfinished: Annotated[int, Field(ge=1, le=100_000)]
    enforce_eager: bool = False
    kv_cache_mb: Annotated[int, Field(ge=64)] | None = None
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    threads: Positive | None = None
    extra: dict[str, Any] = {}

    @field_validator("extra")
    @classmethod
    def _not_managed(cls, value: dict[str, Any]) -> dict[str, Any]:
        if managed := sorted(_MANAGED_ARGUMENTS & value.keys()):
            raise ValueError(
                f"{', '.join(managed)}: set by keys of their own in this file "
                "or by the Serve configuration"
            )
        return value

    @model_validator(mode="after")
    def _queue_holds_a_batch(self) -> EngineArguments:
        if self.max_unfinished < self.max_num_seqs:
            raise ValueError(
                "max_unfinished counts running and waiting requests: "
                "it must be at least max_num_seqs"
            )
        return self


class LocalLLMSettings(Strict):
    """The chat engine.

    `model` is `default` (the folder that `make models` builds), a folder (absolute, or relative to
    the data directory), or a model hub id. `chat_template` is a file beside this one; null takes
    the model's own.
    """

    model: Text = DEFAULT_MODEL
    served_name: Text
    chat_template: Text | None = None
    tool_parser: Text | None = None
    reasoning_parser: Text | None = None
    default_sampling: SamplingSettings = SamplingSettings()
    structured: StructuredSettings = StructuredSettings()
    engine: EngineArguments


class NamedLLMSettings(LocalLLMSettings, Placement):
    """A further chat engine, an application of its own, and its share of a node.

    With `min_replicas: 0` it sleeps after `idle_s` without a call, and a call wakes it.
    `when_asleep`: that call waits within its deadline, goes to the next target, or is refused.
    `busy_at` requests per replica start another one.
    """

    min_replicas: Annotated[int, Field(ge=0, le=1_000)] = 1
    max_replicas: Annotated[int, Field(ge=1, le=1_000)] = 1
    idle_s: Annotated[float, Field(ge=1, le=604_800, allow_inf_nan=False)] = 600
    busy_at: Annotated[int, Field(ge=1, le=100_000)] = 16
    when_asleep: WhenAsleep = "wait"

    @model_validator(mode="after")
    def _fits(self) -> NamedLLMSettings:
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas: must be at least min_replicas")
        if self.engine.gpu_memory_utilization > self.num_gpus > 0:
            raise ValueError(
                "engine.gpu_memory_utilization: above the engine's share of a GPU, "
                f"{self.num_gpus}: lower it, or raise num_gpus"
            )
        return self


class EnginesSettings(Strict):
    """`engines.yaml`. Without `reranker` there is no reranking.

    `local_llms` are further chat engines by their names; `served_name` differs in all of them.
    """

    local_llm: LocalLLMSettings
    local_llms: dict[ModelName, NamedLLMSettings] = {}
    embedder: EmbedderSettings
    reranker: RerankerSettings | None = None

    @model_validator(mode="after")
    def _one_name_each(self) -> EnginesSettings:
        served = {self.local_llm.served_name: "local_llm"}
        for name, model in self.local_llms.items():
            other = served.setdefault(model.served_name, f"local_llms.{name}")
            if other != f"local_llms.{name}":
                raise ValueError(
                    f"local_llms.{name}.served_name: `{model.served_name}` is that of {other}, too"
                )
        return self

    def named_model(self, name: str) -> NamedLLMSettings:
        """Returns an entry of `local_llms`. Raises ConfigurationError when there is none."""
        if name not in self.local_llms:
            known = ", ".join(self.local_llms) or "none"
            raise ConfigurationError(
                f"`{name}` is not among `local_llms` of the engines' file, which has {known}"
            )
        return self.local_llms[name]


def load_engines(environment: Environment, file: str = "engines.yaml") -> EnginesSettings:
    """Returns the settings in `file`, with the model of `environment.model` if that is set.

    Raises:
        ConfigurationError: naming file, key and reason.
    """
    settings = load_yaml(environment.config_dir / file, EnginesSettings)
    if environment.model is None or environment.model == settings.local_llm.model:
        return settings
    return settings.model_copy(
        update={"local_llm": _with_model(settings.local_llm, environment.model)}
    )


def _with_model(settings: LocalLLMSettings, model: str) -> LocalLLMSettings:
    """Returns the settings for another model, without those specific to the file's own."""
    engine = settings.engine
    changes: dict[str, Any] = {
        "extra": {"default_chat_template_kwargs": {"enable_thinking": False}, **engine.extra}
    }
    if engine.kv_cache_mb is not None:
        changes["kv_cache_mb"] = max(engine.kv_cache_mb, OTHER_MODEL_KV_CACHE_MB)
    other = {"model": model, "served_name": served_name(model), "chat_template": None}
    return settings.model_copy(update={**other, "engine": engine.model_copy(update=changes)})


def served_name(model: str) -> str:
    """Returns the name in answers of a folder or hub id: its last part, in lower case."""
    return model.rstrip("/").rpartition("/")[2].lower()


def template_text(
    settings: LocalLLMSettings, environment: Environment, section: str = "local_llm"
) -> str | None:
    """Returns the chat template, or None for the model's own. `section` stands in errors.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    if settings.chat_template is None:
        return None
    try:
        return (environment.config_dir / settings.chat_template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigurationError(
            f"{section}.chat_template: `{settings.chat_template}` is not a readable file "
            "of the configuration directory"
        ) from None


def model_source(
    settings: LocalLLMSettings, environment: Environment, section: str = "local_llm"
) -> str:
    """Returns the folder or hub id to load. Raises ConfigurationError when there is none."""
    key = "DAARION_MODEL" if settings.model == environment.model else f"{section}.model"
    return find_model(settings.model, DEFAULT_FOLDER, key, environment)
