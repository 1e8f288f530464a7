"""Messages and tools of a chat call, as OpenAI's chat completions name and nest them.

They are TypedDicts: checked on the way in, then sent to the upstream as the plain JSON they are,
without a copy.
"""

import json
import re
from typing import Annotated, Any, Literal, NotRequired

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    with_config,
)
from typing_extensions import TypedDict

MAX_TEXT_CHARS = 1_200_000
MAX_TOOLS = 128
MAX_CALL_ID = 1_024
"""Some providers keep state in the ids of their tool calls."""
NO_ARGUMENTS = "{}"
"""Arguments of a tool call that has none: an empty text is no JSON, and upstreams refuse it."""
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def _as_text(value: Any) -> Any:
    """Returns arguments as JSON text; some clients send the parsed object, or nothing."""
    if isinstance(value, str):
        return value if value.strip() else NO_ARGUMENTS
    if value is None:
        return NO_ARGUMENTS
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


def encodable(value: str) -> str:
    """Returns `value`. Raises ValueError for a lone surrogate."""
    if not value.isascii() and _SURROGATE.search(value):
        raise ValueError("holds a lone surrogate, which is not valid UTF-8")
    return value


Text = Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARS), AfterValidator(encodable)]
_STRICT = ConfigDict(extra="forbid")
_LENIENT = ConfigDict(extra="allow")
_DROPPING = ConfigDict(extra="ignore")


@with_config(_STRICT)
class FunctionCall(TypedDict):
    """A tool's name and its arguments as a JSON text, as the model wrote them."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    arguments: Annotated[Text, BeforeValidator(_as_text)]


@with_config(_LENIENT)
class ToolCall(TypedDict):
    """One call the model asks for."""

    id: Annotated[str, StringConstraints(min_length=1, max_length=MAX_CALL_ID)]
    type: Literal["function"]
    function: FunctionCall


@with_config(_LENIENT)
class ContentPart(TypedDict):
    """One part of a multi-part message; other types (images) pass to upstreams that take them."""

    type: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    text: NotRequired[Text]


@with_config(_DROPPING)
class ChatMessage(TypedDict):
    """One message.

    `content` may be null only where `tool_calls` or a `refusal` stand in its place; other nulls are
    left out.

    A refusal goes to the upstream as the content that it is. Other keys, such as those that client
    libraries keep on an assistant's answer, are dropped.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: NotRequired[
        Text | Annotated[list[ContentPart], Field(min_length=1, max_length=256)] | None
    ]
    name: NotRequired[Annotated[str, StringConstraints(max_length=256)] | None]
    tool_calls: NotRequired[Annotated[list[ToolCall], Field(max_length=MAX_TOOLS)] | None]
    tool_call_id: NotRequired[Annotated[str, StringConstraints(max_length=MAX_CALL_ID)] | None]
    refusal: NotRequired[Text | None]


@with_config(_LENIENT)
class FunctionDefinition(TypedDict):
    """A function the model may call; `parameters` is a JSON Schema."""

    name: Annotated[
        str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")
    ]
    description: NotRequired[Text | None]
    parameters: NotRequired[dict[str, Any] | None]
    strict: NotRequired[bool | None]


@with_config(_STRICT)
class ToolSpec(TypedDict):
    """A tool as offered to the model."""

    type: Literal["function"]
    function: FunctionDefinition


@with_config(_STRICT)
class NamedFunction(TypedDict):
    """The function a forced tool choice names."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=64)]


@with_config(_STRICT)
class NamedToolChoice(TypedDict):
    """Forces the call of one function."""

    type: Literal["function"]
    function: NamedFunction


@with_config(_STRICT)
class JsonSchemaFormat(TypedDict):
    """A JSON Schema the answer must satisfy."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    description: NotRequired[Text | None]
    schema: dict[str, Any]
    strict: NotRequired[bool | None]


@with_config(_STRICT)
class ResponseFormat(TypedDict):
    """How the answer is shaped: free text, any JSON object, or one schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NotRequired[JsonSchemaFormat]
