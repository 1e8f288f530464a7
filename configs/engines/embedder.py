"""The sections `embedder` and `reranker` of `engines.yaml`: how the models are run or reached."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from configs.endpoints import BaseUrl, Headers, refuse_exposed_key
from configs.engines.model_source import DEFAULT_MODEL, find_model
from configs.environment import Environment
from configs.proxies import Proxied
from contracts.llm.embeddings import MAX_TEXTS_PER_CALL, EmbeddingKind, EmbeddingSpace
from contracts.shapes import Strict

NEUTRAL = "+neutral1"
"""Ends the version of language-neutral vectors; counted up when their computation changes."""
DEFAULT_FOLDER = Path("models", "multilingual-e5-small")


Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, le=600, allow_inf_nan=False)]
Name = Annotated[
    str, StringConstraints(min_length=1, max_length=256, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$")
]


class PrefixSettings(Strict):
    """Prefixes of texts, as the model was trained; a blank at the end counts."""

    query: Annotated[str, StringConstraints(max_length=1_024)] = ""
    passage: Annotated[str, StringConstraints(max_length=1_024)] = ""

    def of(self, kind: EmbeddingKind) -> str:
        """The prefix of this kind of text."""
        return self.query if kind == "query" else self.passage


class PassSettings(Strict):
    """Bounds of one pass through the model; a query waits at most for the current pass."""

    max_texts: Annotated[int, Field(ge=1, le=1_024)] = 32
    max_tokens: Annotated[int, Field(ge=64, le=1_048_576)] = 1_024


class QueueBounds(Strict):
    """Texts that may wait in one replica; more are answered `overloaded`."""

    max_texts: Positive = 4_096
    max_texts_per_tenant: Positive = 1_024

    @model_validator(mode="after")
    def _holds_a_call(self) -> QueueBounds:
        if not MAX_TEXTS_PER_CALL <= self.max_texts_per_tenant <= self.max_texts:
            raise ValueError(
                f"needs {MAX_TEXTS_PER_CALL} (one call) <= max_texts_per_tenant <= max_texts"
            )
        return self


class QueueSettings(QueueBounds):
    """Queries go first, but passages get `passage_share` of the work while queries never stop."""

    passage_share: Annotated[float, Field(gt=0, lt=1)] = 0.2


class _Common(Strict):
    """Settings of every embedder.

    `version` is recorded with each vector: change it whenever the same text would get another
    vector (another model, other weights, prefixes or window). `served_name` is its name at
    `/internal/llm/v1/embeddings`.
    """

    served_name: Name
    version: Name
    dimension: Annotated[int, Field(ge=1, le=4_000)]
    prefixes: PrefixSettings = PrefixSettings()

    @property
    def physical_name(self) -> str:
        """The provider's name of the model, for the ledger and for prices."""
        return self.served_name

    @property
    def address(self) -> str | None:
        """The endpoint's address, for prices; None for a model in the graph."""
        return None

    @property
    def space(self) -> EmbeddingSpace:
        """The space of the model's own vectors."""
        return EmbeddingSpace(self.version, self.dimension)

    @property
    def memory_space(self) -> EmbeddingSpace:
        """The space of memory's vectors."""
        return self.space


class LocalModelSettings(Strict):
    """`model` is a folder or a hub id; `max_tokens` is the window.

    `dtype` auto is float32 on a CPU, where half precision is many times slower, and float16 on a
    GPU.
    """

    model: Annotated[str, StringConstraints(min_length=1, max_length=1_024, strip_whitespace=True)]
    max_tokens: Annotated[int, Field(ge=16, le=32_768)] = 512
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    threads: Positive | None = None
    batch: PassSettings = PassSettings()

    @model_validator(mode="after")
    def _batch_holds_a_text(self) -> LocalModelSettings:
        if self.batch.max_tokens < self.max_tokens:
            raise ValueError(
                "batch.max_tokens must be at least max_tokens: one text has to fit a batch"
            )
        return self


class LocalEmbedderSettings(LocalModelSettings, _Common):
    """A sentence-transformers model in the graph.

    `model` may be `default`, too; `max_tokens` includes the prefix. `language_neutral` removes from
    memory's vectors what all texts, and all texts of a language, have in common
    (deployments/engines/neutral.py).
    """

    type: Literal["local"] = "local"
    model: Annotated[
        str, StringConstraints(min_length=1, max_length=1_024, strip_whitespace=True)
    ] = DEFAULT_MODEL
    language_neutral: bool = True
    queue: QueueSettings = QueueSettings()

    @property
    def memory_space(self) -> EmbeddingSpace:
        """The space of memory's vectors."""
        return (
            EmbeddingSpace(f"{self.version}{NEUTRAL}", self.dimension)
            if self.language_neutral
            else self.space
        )


class RemoteEmbedderSettings(_Common, Proxied):
    """An endpoint that speaks OpenAI's `POST {base_url}/embeddings`.

    `model` is its name there; `ask_dimensions` sends `dimensions`, for models that can shorten
    their vectors. `api_key_env` names the environment variable of the key; `insecure` lets the key
    go over plain http:// to another machine.
    `proxy` and `proxy_auth_env`: see Proxied.
    """

    type: Literal["openai_compatible"]
    base_url: BaseUrl
    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    api_key_env: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = (
        None
    )
    insecure: bool = False
    headers: Headers = {}
    extra_body: dict[str, Any] = {}
    ask_dimensions: bool = False
    max_texts_per_request: Annotated[int, Field(ge=1, le=2_048)] = 64
    max_concurrent: Annotated[int, Field(ge=2, le=1_024)] = 8
    max_waiting: Annotated[int, Field(ge=1, le=100_000)] = 256
    connect_timeout_s: Seconds = 5
    timeout_s: Seconds = 60

    @property
    def physical_name(self) -> str:
        return self.model

    @property
    def address(self) -> str | None:
        return self.base_url

    @model_validator(mode="after")
    def _key_is_safe(self) -> RemoteEmbedderSettings:
        refuse_exposed_key(self.base_url, self.api_key_env, insecure=self.insecure)
        return self


class RerankerSettings(LocalModelSettings):
    """A cross-encoder in the graph; `max_tokens` holds the question and one text together."""

    queue: QueueBounds = QueueBounds()


EmbedderSettings = Annotated[
    LocalEmbedderSettings | RemoteEmbedderSettings, Field(discriminator="type")
]


def embedder_source(settings: LocalEmbedderSettings, environment: Environment) -> str:
    """Returns the folder or hub id of a local embedder. Raises ConfigurationError."""
    return find_model(settings.model, DEFAULT_FOLDER, "engines.yaml: embedder.model", environment)


def reranker_source(settings: RerankerSettings, environment: Environment) -> str:
    """Returns the folder or hub id of the cross-encoder. Raises ConfigurationError."""
    return find_model(settings.model, None, "engines.yaml: reranker.model", environment)
