"""The embedding model itself: a sentence-transformers model that encodes one batch at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from configs.engines.embedder import LocalEmbedderSettings, LocalModelSettings, embedder_source
from configs.engines.model_source import is_hub_id
from configs.environment import Environment
from contracts.deadline import Deadline
from contracts.errors import ConfigurationError, InvalidRequest
from contracts.llm.embeddings import EmbeddingBatch, EmbeddingInput, EmbeddingKind
from deployments.engines.frozen import freeze
from deployments.engines.neutral import LanguageParts, Vector

MAX_CHARS_PER_TOKEN = 16
"""Texts are cut at this length before they are tokenised, which bounds the tokeniser's work.
No language has pieces that long on average."""

Model = TypeVar("Model", SentenceTransformer, CrossEncoder)

_FOREIGN = (
    "input: these tokens are not of this model's own tokenizer with its marks at both ends: "
    "send texts (LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))"
)


class SentenceEncoder:
    """Loads the model when constructed. Not thread-safe: one thread encodes.

    Raises:
        ConfigurationError: the model cannot be loaded, or its dimension is not the configured one.
    """

    def __init__(self, settings: LocalEmbedderSettings, source: str) -> None:
        self._settings = settings
        self._model = load_model(SentenceTransformer, "embedder", settings, source)
        self._model.max_seq_length = settings.max_tokens
        # Prefixes are the settings' alone: the library would add the model's own to batches.
        self._model.default_prompt_name = None
        dimension = self._model.get_embedding_dimension()
        if dimension != settings.dimension:
            raise ConfigurationError(
                f"engines.yaml: embedder.dimension: {settings.dimension}, "
                f"but the model has {dimension}"
            )
        self.frozen = self._model.device.type == "cpu" and freeze(self._model)
        self.parts = LanguageParts.measured(self._passages) if settings.language_neutral else None

    def texts_of(self, inputs: Sequence[EmbeddingInput]) -> list[str]:
        """Returns the texts; inputs of tokens are decoded.

        Tokens must have the marks of the model's own tokenizer at both ends: ids alone would not
        show that they come from another one.

        Raises:
            InvalidRequest: tokens of another tokenizer, or of an empty text.
        """
        return [given if isinstance(given, str) else self._decoded(given) for given in inputs]

    def encode(self, texts: Sequence[str], kind: EmbeddingKind) -> list[tuple[bytes, int]]:
        """Returns each text's unit vector as little-endian float32, and its number of tokens."""
        prefix = self._settings.prefixes.of(kind)
        prepared = [prefix + cut_text(text, self._settings.max_tokens) for text in texts]
        if len(prepared) == 1:
            return [self._one(prepared[0])]
        counts = self._count(prepared)
        # The library sorts by length: neighbours of about the same length waste the least padding.
        vectors = self._model.encode(
            prepared,
            batch_size=self._batch_size(counts),
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        rows = np.ascontiguousarray(vectors, dtype="<f4")
        return [(row.tobytes(), count) for row, count in zip(rows, counts, strict=True)]

    def _decoded(self, tokens: Sequence[int]) -> str:
        tokenizer = self._model.tokenizer
        a_text, special = tokenizer("a")["input_ids"], set(tokenizer.all_special_ids)
        marks = {end: a_text[end] for end in (0, -1) if a_text[end] in special}
        if (
            not marks
            or max(tokens) >= len(tokenizer)
            or any(tokens[end] != mark for end, mark in marks.items())
        ):
            raise InvalidRequest(_FOREIGN)
        text: str = tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        if not text.strip():
            raise InvalidRequest("input: must not be empty")
        return text

    def _one(self, prepared: str) -> tuple[bytes, int]:
        """Encodes one text without the library's work of sorting and splitting many."""
        features = self._model.tokenizer(
            [prepared], truncation=True, max_length=self._settings.max_tokens, return_tensors="pt"
        )
        with torch.inference_mode():
            vector = self._model(dict(features.to(self._model.device)))["sentence_embedding"][0]
            vector = torch.nn.functional.normalize(vector.float(), dim=0).cpu().numpy()
        return np.ascontiguousarray(vector, dtype="<f4").tobytes(), int(
            features["input_ids"].shape[1]
        )

    def neutral(self, texts: Sequence[str], vectors: Sequence[bytes]) -> list[bytes]:
        """Returns the vectors without their language's part, if `language_neutral` is set."""
        if self.parts is None:
            return list(vectors)
        return [
            self.parts.without(text, np.frombuffer(data, "<f4")).tobytes()
            for text, data in zip(texts, vectors, strict=True)
        ]

    def _passages(self, texts: list[str]) -> Vector:
        return np.stack([np.frombuffer(data, "<f4") for data, _ in self.encode(texts, "passage")])

    def _batch_size(self, counts: Sequence[int]) -> int:
        """Texts per pass that fit the batch's tokens when each is padded to the longest."""
        return max(
            1, min(self._settings.batch.max_texts, self._settings.batch.max_tokens // max(counts))
        )

    def _count(self, prepared: Sequence[str]) -> list[int]:
        encoded = self._model.tokenizer(
            list(prepared), truncation=True, max_length=self._settings.max_tokens, padding=False
        )
        return [len(ids) for ids in encoded["input_ids"]]


class InProcessEmbedder:
    """The Embedder port in this process, for commands that run beside the graph.

    It serves one caller at a time. The constructor loads the model.

    Raises:
        ConfigurationError: the model cannot be loaded.
    """

    def __init__(self, settings: LocalEmbedderSettings, environment: Environment) -> None:
        self._encoder = SentenceEncoder(settings, embedder_source(settings, environment))
        self.model_version = settings.memory_space.model_version
        self.dimension = settings.memory_space.dimension

    async def embed(
        self,
        texts: Sequence[str],
        kind: EmbeddingKind,
        *,
        tenant: str,  # noqa: ARG002  # the port's
        deadline: Deadline,
    ) -> EmbeddingBatch:
        """Returns one vector per text."""
        deadline.check()
        encoded = await asyncio.to_thread(self._encoder.encode, texts, kind)
        vectors = self._encoder.neutral(texts, [vector for vector, _ in encoded])
        return EmbeddingBatch(
            b"".join(vectors),
            self.dimension,
            self.model_version,
            sum(count for _, count in encoded),
        )


def load_model(kind: type[Model], section: str, settings: LocalModelSettings, source: str) -> Model:
    """Loads a model onto the process's GPU if it has one; `section` of `engines.yaml` is its own.

    Raises:
        ConfigurationError: the model cannot be loaded.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if settings.threads is not None and device == "cpu":
        torch.set_num_threads(settings.threads)
    try:
        model = kind(
            source,
            device=device,
            local_files_only=not is_hub_id(source),
            model_kwargs={"dtype": _dtype(settings.dtype, device)},
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ConfigurationError(
            f"engines.yaml: {section}.model: `{settings.model}` cannot be loaded "
            f"({type(error).__name__})"
        ) from error
    if device == "cpu":
        _own_memory(model)
    return model


def cut_text(text: str, max_tokens: int) -> str:
    """Returns the beginning, with lone surrogates replaced: the tokenizer refuses those."""
    return text[: max_tokens * MAX_CHARS_PER_TOKEN].encode("utf-8", "replace").decode("utf-8")


def _own_memory(model: torch.nn.Module) -> None:
    """Copies the weights from the mapped file into memory that may have huge pages.

    A pass after a pause then took half as long.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def _dtype(name: str, device: str) -> torch.dtype:
    """`auto` is float32 on a CPU, where half precision took twelve times as long."""
    if name == "auto":
        name = "float16" if device == "cuda" else "float32"
    dtype: torch.dtype = getattr(torch, name)
    return dtype
