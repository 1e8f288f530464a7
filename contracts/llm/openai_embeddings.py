"""Wire shapes of `POST /internal/llm/v1/embeddings`: OpenAI's, with one field of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from contracts.llm.embeddings import MAX_TEXTS_PER_CALL, EmbeddingInput, EmbeddingKind
from contracts.llm.messages import encodable
from contracts.llm.openai_chat import Identity
from contracts.shapes import Frozen
from contracts.values import not_blank

MAX_INPUT_CHARS = 100_000
MAX_INPUT_TOKENS = 8_192


InputText = Annotated[
    str,
    StringConstraints(max_length=MAX_INPUT_CHARS),
    AfterValidator(encodable),
    AfterValidator(not_blank),
]

InputTokens = Annotated[
    list[Annotated[int, Field(strict=True, ge=0, lt=2**31)]],
    Field(min_length=1, max_length=MAX_INPUT_TOKENS),
]

_Several = Field(max_length=MAX_TEXTS_PER_CALL)


class EmbeddingsRequest(Frozen):
    """One text, one array of tokens, or a list of either.

    Tokens are those of the model's own tokenizer.

    `input_type` is ours: models such as E5 embed a question otherwise than the text that answers
    it. Without it a text is a passage. `dimensions` is refused unless it is the model's own. Fields
    that OpenAI adds are ignored.
    """

    input: Annotated[
        InputText
        | Annotated[list[InputText], _Several]
        | InputTokens
        | Annotated[list[InputTokens], _Several],
        # Not in the branches: each would name what it wanted instead.
        Field(min_length=1, json_schema_extra={"minItems": 1}),
    ]
    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    input_type: EmbeddingKind | None = None
    user: Annotated[str, StringConstraints(max_length=256)] | None = None
    metadata: Identity | None = None

    @property
    def inputs(self) -> Sequence[EmbeddingInput]:
        """The input as a list."""
        given: Any = self.input
        return [given] if isinstance(given, str) or isinstance(given[0], int) else given


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
