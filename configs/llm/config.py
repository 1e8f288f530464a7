"""The typed model of `llm.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from configs.endpoints import BaseUrl, Headers, refuse_exposed_key
from configs.llm.failover import (
    CircuitSettings,
    Name,
    RetrySettings,
    SpillSettings,
    TimeoutSettings,
)
from configs.llm.limits import LimitSettings, PriceSettings
from configs.proxies import Proxied
from contracts.llm.routing import Continuation, Reasoning, StreamRecovery
from contracts.shapes import Strict

EMBEDDER_TYPES = ("local", "openai_compatible")

PricedModel = Annotated[str, StringConstraints(min_length=1, max_length=400)]


class ProviderSettings(Proxied):
    """One provider.

    `type` names the adapter, a module of `providers/`. `extra_body` is merged into every request
    body: it wins over fields that callers pass through `/v1`, and yields to those of `/proxy`.
    `headers` are added to every request; credentials come from the environment instead, through
    `api_key_env`. `insecure` lets the key go over plain http:// to another machine. `continuation`
    is the way to ask for the rest of an answer that broke off elsewhere: an instruction, the
    provider's dialect for an assistant's prefix (`vllm`, `deepseek`), or none. `done_completes`
    accepts a stream that ends in `[DONE]` without a finish reason. `stream_whole_answers` reads
    whole answers as streams, so that `first_token_s` and `idle_s` bound their silence.
    `proxy` and `proxy_auth_env`: see Proxied.
    """

    type: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")] = "openai_compatible"
    base_url: BaseUrl | None = None
    api_key_env: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = (
        None
    )
    insecure: bool = False
    headers: Headers = {}
    extra_body: dict[str, Any] = {}
    timeouts: TimeoutSettings = TimeoutSettings()
    retry: RetrySettings = RetrySettings()
    circuit: CircuitSettings = CircuitSettings()
    continuation: Continuation | None = None
    done_completes: bool = False
    stream_whole_answers: bool = False
    max_connections: Annotated[int, Field(ge=1, le=10_000)] = 512
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"

    @model_validator(mode="after")
    def _has_url(self) -> ProviderSettings:
        if self.type == "openai_compatible" and self.base_url is None:
            raise ValueError("`base_url` is required for type openai_compatible")
        refuse_exposed_key(self.base_url, self.api_key_env, insecure=self.insecure)
        return self


class ModelSettings(Strict):
    """One logical model: provider, the provider's name for it, logical models to fall back on.

    For a local engine `model` names an entry of `local_llms` in the engines' file (none: it is
    `local_llm`), and `name` may be left out: it is `served_name` there. `spill` names the models
    that take over while the provider is busy. `stream_recovery` applies when a stream breaks after
    its first content. `reasoning` marks a model that thinks before it answers, `opened` one whose
    prompt opens the thought. `context_tokens` bounds prompt and answer together; by default it
    comes from the engines' file or from the price library.
    """

    provider: Name
    name: Annotated[str, StringConstraints(max_length=256)] = ""
    model: Name | None = None
    fallbacks: tuple[Name, ...] = ()
    timeouts: TimeoutSettings = TimeoutSettings()
    retry: RetrySettings = RetrySettings()
    spill: SpillSettings | None = None
    stream_recovery: StreamRecovery = "error"
    reasoning: Reasoning = False
    context_tokens: Annotated[int, Field(ge=1, le=1 << 30)] | None = None


class CacheSettings(Strict):
    """The response cache of each replica, for requests that ask for it."""

    max_bytes: Annotated[int, Field(ge=1 << 16, le=1 << 34)] = 64 << 20


class IdempotencySettings(Strict):
    """How long the answer to an `Idempotency-Key` is kept."""

    retention_h: Annotated[float, Field(gt=0, le=24 * 31, allow_inf_nan=False)] = 24.0


class BatchSettings(Strict):
    """Batches.

    `concurrency` bounds the running batch requests per replica, less its calls with a waiting
    caller, but at least one; 0 leaves batches to other replicas. After `max_failures` temporary
    failures a request is given up. `max_waiting` bounds the unfinished requests of one microDAO;
    `retention_days` counts from submission.
    """

    concurrency: Annotated[int, Field(ge=0, le=256)] = 4
    max_failures: Annotated[int, Field(ge=1, le=100)] = 5
    max_waiting: Annotated[int, Field(ge=1, le=10_000_000)] = 100_000
    retention_days: Annotated[float, Field(gt=0, le=365, allow_inf_nan=False)] = 30.0


class UsageSettings(Strict):
    """How long the ledger of calls is kept; null keeps it. Sums by day stay 62 days at least."""

    retention_days: Annotated[float, Field(ge=1, le=36_500)] | None = None


class LLMSettings(Strict):
    """`llm.yaml`.

    A key of `prices` is a model of this file, or `<provider>/<the provider's name of the model>`;
    the embedder's provider is its `type` in `engines.yaml`.
    """

    providers: Annotated[dict[Name, ProviderSettings], Field(min_length=1)]
    models: Annotated[dict[Name, ModelSettings], Field(min_length=1)]
    timeouts: TimeoutSettings = TimeoutSettings()
    retry: RetrySettings = RetrySettings()
    circuit: CircuitSettings = CircuitSettings()
    limits: LimitSettings = LimitSettings()
    prices: dict[PricedModel, PriceSettings] = {}
    cache: CacheSettings = CacheSettings()
    idempotency: IdempotencySettings = IdempotencySettings()
    batch: BatchSettings = BatchSettings()
    usage: UsageSettings = UsageSettings()

    @model_validator(mode="after")
    def _references(self) -> LLMSettings:
        for name, model in self.models.items():
            if model.provider not in self.providers:
                raise ValueError(
                    f"models.{name}.provider: `{model.provider}` is not among providers: "
                    f"{', '.join(self.providers)}"
                )
            for key, others in (
                ("fallbacks", model.fallbacks),
                ("spill.to", model.spill.to if model.spill else ()),
            ):
                for other in others:
                    if other not in self.models or other == name:
                        raise ValueError(
                            f"models.{name}.{key}: `{other}` must be another model of this file"
                        )
        for name in self.prices:
            if name not in self.models and name.partition("/")[0] not in {
                *self.providers,
                *EMBEDDER_TYPES,
            }:
                raise ValueError(
                    f"prices.{name}: neither a model of this file nor `<provider>/<name>` "
                    "of a provider of this file"
                )
        return self

    def uses_local_engine(self) -> bool:
        """Whether any model is served by the engine `local_llm`."""
        return any(self._is_local(model) and model.model is None for model in self.models.values())

    def with_local_model(
        self,
        served_name: str,
        context_tokens: int,
        further: Mapping[str, tuple[str, int]] = MappingProxyType({}),
    ) -> LLMSettings:
        """Returns the settings with the names and the contexts of the local engines' models.

        `further` has the served name and the context of each entry of `local_llms`.

        Raises:
            ValueError: a local model has another name, or names no entry of `further`; a remote one
                has no name, or names an entry.
        """
        models = dict(self.models)
        for name, model in self.models.items():
            if not self._is_local(model):
                if not model.name:
                    raise ValueError(
                        f"models.{name}.name: required: the name of the model at `{model.provider}`"
                    )
                if model.model is not None:
                    raise ValueError(f"models.{name}.model: only for providers of type local")
            else:
                if model.model is not None and model.model not in further:
                    raise ValueError(
                        f"models.{name}.model: `{model.model}` is not among `local_llms` of the "
                        f"engines' file, which has {', '.join(further) or 'none'}"
                    )
                served, context = (
                    (served_name, context_tokens) if model.model is None else further[model.model]
                )
                if model.name not in {"", served}:
                    raise ValueError(
                        f"models.{name}.name: the local engine serves `{served}`: "
                        "name that, or leave `name` out"
                    )
                models[name] = model.model_copy(update={"name": served, "context_tokens": context})
        return self.model_copy(update={"models": models})

    def _is_local(self, model: ModelSettings) -> bool:
        return self.providers[model.provider].type == "local"
