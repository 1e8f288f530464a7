"""The typed model of `llm.yaml`."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

Name = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$")]
Seconds = Annotated[float, Field(gt=0, le=3_600, allow_inf_nan=False)]

_STRICT = ConfigDict(extra="forbid", frozen=True)


class TimeoutSettings(BaseModel):
    """Phases of one upstream call in seconds; what is absent is inherited."""

    model_config = _STRICT

    connect_s: Seconds | None = None
    first_token_s: Seconds | None = None
    idle_s: Seconds | None = None
    total_s: Seconds | None = None

    def over(self, base: TimeoutSettings) -> TimeoutSettings:
        """Returns these values, with `base` where one is absent."""
        return base.model_copy(update=self.model_dump(exclude_none=True))


DEFAULT_TOTAL_S = 120.0
DEFAULT_TIMEOUTS = TimeoutSettings(connect_s=5, first_token_s=60, idle_s=30, total_s=DEFAULT_TOTAL_S)


class ProviderSettings(BaseModel):
    """One provider.

    `type` names the adapter, a module of `providers/`. `extra_body` is merged into every request body, `headers` are
    added to every request (no credentials there: those come from the environment through `api_key_env`).
    """

    model_config = _STRICT

    type: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")] = "openai_compatible"
    base_url: str | None = None
    api_key_env: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    headers: dict[str, str] = {}
    extra_body: dict[str, Any] = {}
    timeouts: TimeoutSettings = TimeoutSettings()
    max_connections: Annotated[int, Field(ge=1, le=10_000)] = 512

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            msg = "must be an http:// or https:// URL"
            raise ValueError(msg)
        if parts.username or parts.password or parts.query or parts.fragment:
            msg = "must hold no credentials, query or fragment; give keys through `api_key_env`"
            raise ValueError(msg)
        return value.rstrip("/")

    @field_validator("headers")
    @classmethod
    def _no_credentials(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if name.lower() in {"authorization", "proxy-authorization", "cookie", "x-api-key", "api-key"}:
                msg = f"`{name}` would be a secret in a file; give it through `api_key_env`"
                raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _has_url(self) -> ProviderSettings:
        if self.type == "openai_compatible" and self.base_url is None:
            msg = "`base_url` is required for type openai_compatible"
            raise ValueError(msg)
        return self


class ModelSettings(BaseModel):
    """One logical model: the provider, the provider's own name for it, and the logical models to fall back on."""

    model_config = _STRICT

    provider: Name
    name: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    fallbacks: tuple[Name, ...] = ()
    timeouts: TimeoutSettings = TimeoutSettings()


class RateSettings(BaseModel):
    """Limits of one subject; null means none."""

    model_config = _STRICT

    requests_per_minute: Annotated[int, Field(ge=1, le=10**9)] | None = None


class LimitSettings(BaseModel):
    """Limits by kind of subject; `agents` overrides the default of single agents by id."""

    model_config = _STRICT

    agent: RateSettings = RateSettings(requests_per_minute=240_000)
    agents: dict[str, RateSettings] = {}

    def requests_per_minute(self, agent_id: str) -> int | None:
        """The limit of one agent; None means none."""
        return self.agents.get(agent_id, self.agent).requests_per_minute


class LLMSettings(BaseModel):
    """`llm.yaml`."""

    model_config = _STRICT

    providers: Annotated[dict[Name, ProviderSettings], Field(min_length=1)]
    models: Annotated[dict[Name, ModelSettings], Field(min_length=1)]
    timeouts: TimeoutSettings = TimeoutSettings()
    limits: LimitSettings = LimitSettings()

    @model_validator(mode="after")
    def _references(self) -> LLMSettings:
        for name, model in self.models.items():
            if model.provider not in self.providers:
                msg = f"models.{name}.provider: `{model.provider}` is not among providers: {', '.join(self.providers)}"
                raise ValueError(msg)
            for fallback in model.fallbacks:
                if fallback not in self.models or fallback == name:
                    msg = f"models.{name}.fallbacks: `{fallback}` must be another model of this file"
                    raise ValueError(msg)
        return self

    def uses_local_engine(self) -> bool:
        """Whether any model leads to the in-cluster engine."""
        return any(self.providers[model.provider].type == "local" for model in self.models.values())

    def longest_call_s(self) -> float:
        """Seconds that a call may take at most, by the longest timeouts configured."""
        layers = (self.timeouts, *(entry.timeouts for group in (self.providers, self.models) for entry in group.values()))
        return max((layer.total_s for layer in layers if layer.total_s is not None), default=DEFAULT_TOTAL_S)
