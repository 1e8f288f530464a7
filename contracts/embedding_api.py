"""Wire shapes of `POST /internal/llm/v1/embeddings`: OpenAI's, with one field of ours."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from contracts.embedding import MAX_TEXTS_PER_CALL, EmbeddingKind
from contracts.openai_api import Identity

MAX_INPUT_CHARS = 100_000

_LENIENT = ConfigDict(extra="ignore")


def _encodable(value: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        msg = "holds a lone surrogate, which is not valid UTF-8"
        raise ValueError(msg) from None
    return value


def _not_empty(value: str) -> str:
    if not value.strip():
        msg = "must not be empty"
        raise ValueError(msg)
    return value


InputText = Annotated[str, StringConstraints(max_length=MAX_INPUT_CHARS), AfterValidator(_encodable), AfterValidator(_not_empty)]


class EmbeddingsRequest(BaseModel):
    """One text or a list of them; arrays of tokens are not taken.

    `input_type` is ours: models such as E5 embed a question otherwise than the text that answers it. Without it a text is
    a passage. `dimensions` is refused unless it is the model's own. Fields that OpenAI adds are ignored.
    """

    model_config = _LENIENT

    input: InputText | Annotated[list[InputText], Field(min_length=1, max_length=MAX_TEXTS_PER_CALL)]
    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    input_type: EmbeddingKind | None = None
    user: Annotated[str, StringConstraints(max_length=256)] | None = None
    metadata: Identity | None = None

    @property
    def texts(self) -> list[str]:
        """The input as a list."""
        return [self.input] if isinstance(self.input, str) else self.input


class EmbeddingRow(BaseModel):
    """One vector: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(BaseModel):
    """Tokens as the model counted them, prefixes included."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(BaseModel):
    """The vectors in the order of the input."""

    object: Literal["list"] = "list"
    data: list[EmbeddingRow]
    model: str
    usage: EmbeddingsUsage
