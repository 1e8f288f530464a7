"""Bodies of `POST /internal/llm/proxy` and `/stream`, and the options that providers take."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)
from typing_extensions import TypedDict

from contracts.errors import InvalidRequest
from contracts.identity import Identifier, plain
from contracts.llm.messages import (
    MAX_TOOLS,
    ChatMessage,
    FunctionDefinition,
    JsonSchemaFormat,
    NamedToolChoice,
    ResponseFormat,
    Text,
    ToolSpec,
)
from contracts.shapes import Frozen, Strict
from contracts.values import unsendable

MAX_MESSAGES = 2_000
MAX_TIMEOUT_S = 3_600.0
MAX_EXTRA_FIELDS = 64
MAX_EXTRA_BYTES = 256 << 10


class CallMetadata(Frozen):
    """Who asks. Further keys are accepted and ignored; none of it reaches an upstream."""

    agent_id: Identifier
    microdao_id: Identifier
    channel_id: Identifier | None = None


class CacheRequest(Strict):
    """Asks for the exact-match response cache: answers live `ttl_s` seconds."""

    ttl_s: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class ProxyRequest(BaseModel):
    """Body of `POST /internal/llm/proxy` and `/stream`. Unknown fields are refused by name."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(plain)]
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    metadata: CallMetadata
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=16)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    tools: Annotated[list[ToolSpec], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    response_format: ResponseFormat | None = None
    timeout_s: Annotated[float, Field(gt=0, le=MAX_TIMEOUT_S, allow_inf_nan=False)] | None = None
    cache: CacheRequest | None = None

    @property
    def extra_body(self) -> dict[str, Any] | None:
        """Fields of the caller that only the upstream knows; never read from a body of `/proxy`."""
        return self.__dict__.get(_EXTRA)

    def pass_through(self, fields: Mapping[str, Any]) -> None:
        """Passes `fields` through to upstreams that take them. Raises InvalidRequest:
        `checked_extra`.
        """
        # Not a field, so that no body can set it, and cheaper than a private attribute.
        self.__dict__[_EXTRA] = checked_extra(fields) or None

    @model_validator(mode="after")
    def _consistent(self) -> "ProxyRequest":
        for index, message in enumerate(self.messages):
            _check_message(index, message)
        self._tidy_tools()
        if self.response_format and "json_schema" in self.response_format:
            _drop_nulls(self.response_format["json_schema"])
        _check_tool_choice(self.tools, self.tool_choice)
        _check_numbers("tools", self.tools)
        _check_numbers("response_format", self.response_format)
        if self.response_format and (self.response_format["type"] == "json_schema") != (
            "json_schema" in self.response_format
        ):
            raise ValueError(
                "response_format: `json_schema` goes with type `json_schema`, and only with it"
            )
        return self

    def _tidy_tools(self) -> None:
        """Drops what upstreams refuse: nulls, an empty list, `none` without tools."""
        for tool in self.tools or ():
            _drop_nulls(tool["function"])
        if not self.tools and (
            self.tool_choice == "none" or (self.tools is not None and self.tool_choice == "auto")
        ):
            self.tool_choice = None
        self.tools = self.tools or None

    def options(self) -> "ChatOptions":
        """Returns the set sampling and format options, ready to stand in an upstream body."""
        fields = self.__dict__  # pydantic's attribute look-up costs more than the rest of this
        found = {key: value for key in _OPTION_FIELDS if (value := fields[key]) is not None}
        if extra := fields.get(_EXTRA):
            found["extra_body"] = extra
        return cast("ChatOptions", found)


def _drop_nulls(members: FunctionDefinition | JsonSchemaFormat) -> None:
    found = cast("dict[str, Any]", members)
    for name in [name for name, value in found.items() if value is None]:
        del found[name]


_OPTIONAL_IN_MESSAGES = frozenset({"name", "tool_calls", "tool_call_id"})
"""What upstreams refuse where it is null or empty, although it may be absent."""


def _check_message(index: int, message: ChatMessage) -> None:
    for key in _OPTIONAL_IN_MESSAGES & message.keys():
        if not message[key]:  # type: ignore[literal-required]
            del message[key]  # type: ignore[misc]
    if "refusal" in message:
        refusal = message.pop("refusal")
        if message.get("content") is None and refusal:
            message["content"] = refusal
    if message.get("content") is None and not message.get("tool_calls"):
        raise ValueError(f"messages[{index}].content: required unless the message has tool_calls")
    if message["role"] == "tool" and not message.get("tool_call_id"):
        raise ValueError(f"messages[{index}].tool_call_id: required for role `tool`")
    if message.get("tool_calls") and message["role"] != "assistant":
        raise ValueError(f"messages[{index}].tool_calls: only role `assistant` may have them")
    if not isinstance(content := message.get("content"), str):
        _check_numbers(f"messages[{index}].content", content)
    _check_numbers(f"messages[{index}].tool_calls", message.get("tool_calls"))


def _check_numbers(path: str, value: Any) -> None:
    """Raises ValueError for numbers that cannot be sent, in values that the models do not check."""
    if value is not None and (mistake := unsendable(value, path)):
        raise ValueError(mistake)


def _check_tool_choice(tools: list[ToolSpec] | None, choice: str | NamedToolChoice | None) -> None:
    if choice is None or choice == "none":
        return
    names = [tool["function"]["name"] for tool in tools or []]
    if not names:
        raise ValueError("tool_choice: needs `tools`")
    if isinstance(choice, dict) and choice["function"]["name"] not in names:
        chosen = choice["function"]["name"]
        raise ValueError(f"tool_choice: `{chosen}` is not among the tools: {', '.join(names)}")


def checked_extra(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `fields` as they may be passed through to an upstream.

    Raises:
        InvalidRequest: over 64 fields, over 256 KiB of JSON, or no JSON that can be sent on.
    """
    if len(fields) > MAX_EXTRA_FIELDS:
        raise InvalidRequest(
            f"the request has over {MAX_EXTRA_FIELDS} fields that are not known here"
        )
    try:
        size = len(json.dumps(fields, allow_nan=False, ensure_ascii=False).encode())
    except (TypeError, ValueError, RecursionError):
        raise InvalidRequest("a field that is not known here is not valid JSON") from None
    for name, value in fields.items():
        if mistake := unsendable(value, name):
            raise InvalidRequest(mistake)
    if size > MAX_EXTRA_BYTES:
        raise InvalidRequest(
            f"the fields that are not known here are over {MAX_EXTRA_BYTES >> 10} KiB together"
        )
    return dict(fields)


class ChatOptions(TypedDict, total=False):
    """What may vary between calls of one provider besides the messages.

    `extra_body` holds fields that only the upstream knows: merged into its body, but never over a
    field named here.
    """

    max_tokens: int
    temperature: float
    top_p: float
    stop: str | list[str]
    seed: int
    tools: list[ToolSpec]
    tool_choice: str | NamedToolChoice
    response_format: ResponseFormat
    extra_body: dict[str, Any]


_EXTRA = "extra_body"
_OPTION_FIELDS = tuple(name for name in ChatOptions.__annotations__ if name != _EXTRA)
