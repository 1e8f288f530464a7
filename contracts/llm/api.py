"""Wire shapes of the LLM proxy: `/internal/llm/proxy`, `/stream`, `/models`.

Messages and tools are TypedDicts: they are checked on the way in, then travel to the upstream as the plain JSON they
are, without a copy. Names and nesting follow OpenAI's chat completions, which every upstream speaks.
"""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
    with_config,
)
from typing_extensions import TypedDict

from contracts.errors import InvalidRequest
from contracts.identity import Identifier, plain
from contracts.values import unsendable

MAX_TEXT_CHARS = 1_200_000
MAX_MESSAGES = 2_000
MAX_TOOLS = 128
MAX_CALL_ID = 1_024
"""Some providers keep state in the ids of their tool calls."""
MAX_TIMEOUT_S = 3_600.0
MAX_EXTRA_FIELDS = 64
NO_ARGUMENTS = "{}"
"""Arguments of a tool call that has none: an empty text is no JSON, and upstreams refuse it."""
MAX_EXTRA_BYTES = 256 << 10

_SURROGATE = re.compile(r"[\ud800-\udfff]")


def _as_text(value: Any) -> Any:
    """Arguments as the JSON text that they are everywhere else: some clients send the object that they read it into, or nothing."""
    if isinstance(value, str):
        return value if value.strip() else NO_ARGUMENTS
    if value is None:
        return NO_ARGUMENTS
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


def _encodable(value: str) -> str:
    if not value.isascii() and _SURROGATE.search(value):
        msg = "holds a lone surrogate, which is not valid UTF-8"
        raise ValueError(msg)
    return value


Text = Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARS), AfterValidator(_encodable)]

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
    """One message. `content` may be null only where `tool_calls` or a `refusal` stand in its place; other nulls are left out.

    A refusal goes to the upstream as the content that it is. Other keys, such as those that client libraries keep on an
    assistant's answer, are dropped.
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


class CallMetadata(BaseModel):
    """Who asks. Further keys are accepted and ignored; none of it reaches an upstream."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    agent_id: Identifier
    microdao_id: Identifier
    channel_id: Identifier | None = None


class CacheRequest(BaseModel):
    """Asks for the exact-match response cache: answers live `ttl_s` seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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
        """Fields of the caller's that only the upstream knows; never read from a body of `/proxy`."""
        return self.__dict__.get(_EXTRA)

    def pass_through(self, fields: Mapping[str, Any]) -> None:
        """Hands `fields` on to upstreams that take them. Raises InvalidRequest as `checked_extra`."""
        self.__dict__[_EXTRA] = (
            checked_extra(fields) or None
        )  # no field, and cheaper than a private one on every request

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
            msg = "response_format: `json_schema` goes with type `json_schema`, and only with it"
            raise ValueError(msg)
        return self

    def _tidy_tools(self) -> None:
        """Drops what upstreams refuse: nulls, an empty list with the choice beside it, and `none` where there are no tools."""
        for tool in self.tools or ():
            _drop_nulls(tool["function"])
        if not self.tools and (
            self.tool_choice == "none" or (self.tools is not None and self.tool_choice == "auto")
        ):
            self.tool_choice = None
        self.tools = self.tools or None

    def options(self) -> "ChatOptions":
        """Returns the set sampling and format options, ready to stand in an upstream body."""
        fields = (
            self.__dict__
        )  # pydantic's own look-up of attributes costs more than all the rest here
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
        msg = f"messages[{index}].content: required unless the message has tool_calls"
        raise ValueError(msg)
    if message["role"] == "tool" and not message.get("tool_call_id"):
        msg = f"messages[{index}].tool_call_id: required for role `tool`"
        raise ValueError(msg)
    if message.get("tool_calls") and message["role"] != "assistant":
        msg = f"messages[{index}].tool_calls: only role `assistant` may have them"
        raise ValueError(msg)
    if not isinstance(content := message.get("content"), str):
        _check_numbers(f"messages[{index}].content", content)
    _check_numbers(f"messages[{index}].tool_calls", message.get("tool_calls"))


def _check_numbers(path: str, value: Any) -> None:
    """Values that the models above take as they are (schemas, parts for other upstreams) must be sendable, too."""
    if value is not None and (mistake := unsendable(value, path)):
        raise ValueError(mistake)


def _check_tool_choice(tools: list[ToolSpec] | None, choice: str | NamedToolChoice | None) -> None:
    if choice is None or choice == "none":
        return
    names = [tool["function"]["name"] for tool in tools or []]
    if not names:
        msg = "tool_choice: needs `tools`"
        raise ValueError(msg)
    if isinstance(choice, dict) and choice["function"]["name"] not in names:
        msg = f"tool_choice: `{choice['function']['name']}` is not among the tools: {', '.join(names)}"
        raise ValueError(msg)


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

    `extra_body` holds fields that only the upstream knows: merged into its body, but never over a field named here.
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


class TokenUsage(BaseModel):
    """Tokens as the provider counted them. `estimated` marks a count of ours where the provider gave none."""

    model_config = ConfigDict(frozen=True)

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    estimated: bool | None = None


class Attempt(BaseModel):
    """One try at one target. `outcome` is `ok` or the error's type."""

    model_config = ConfigDict(frozen=True)

    provider: str
    model: str
    outcome: str
    latency_ms: float


class ProxyResponse(BaseModel):
    """Body of a successful `POST /internal/llm/proxy`. Absent optional fields are left out.

    `refusal` is what the model said in place of an answer, from providers that tell the two apart.
    """

    content: str
    usage: TokenUsage
    provider: str
    model_resolved: str
    tool_calls: list[ToolCall] | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    finish_reason: str | None = None
    request_id: str | None = None
    latency_ms: float | None = None
    cached: bool | None = None
    attempts: list[Attempt] | None = None


class LLMResponse(BaseModel):
    """What a provider returns for one whole answer. `reasoning` and `refusal` are kept apart from `content`."""

    content: str
    usage: TokenUsage
    finish_reason: str | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning: str | None = None
    refusal: str | None = None


class StreamDelta(BaseModel):
    """One piece of a streamed answer: text, reasoning, or fragments of tool calls.

    The first fragment of a call has `index`, `id`, `type`, and a `function` with the name; later ones have `index` and a `function` with
    a piece of the `arguments`, which are text.

    `usage` is what the answer took so far, from providers that tell it with every piece.
    """

    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    refusal: str | None = None
    usage: TokenUsage | None = None


def join_fragment(calls: dict[int, dict[str, Any]], fragment: dict[str, Any]) -> None:
    """Adds a fragment of a StreamDelta to the call that it names by its index."""
    call = calls.get(fragment["index"])
    if call is None:
        call = calls[fragment["index"]] = {
            key: value for key, value in fragment.items() if key != "index"
        }
        call["function"] = {"name": "", "arguments": ""}
    function = call["function"]
    for part, piece in fragment["function"].items():
        text, function[part] = (
            function[part],
            "",
        )  # held by a local variable alone, a text grows in place
        text += piece
        function[part] = text


class StreamEnd(BaseModel):
    """The regular end of a stream. A provider that ends without it was cut off.

    The proxy adds `attempts`, and `written_by` (`provider/model` of each part, in order) where several wrote one answer;
    `cached` marks an answer from the response cache. `unreadable` counts the provider's events that had to be passed over.
    """

    finish_reason: str
    usage: TokenUsage
    unreadable: int | None = None
    attempts: list[Attempt] | None = None
    written_by: list[str] | None = None
    cached: bool | None = None


StreamItem = StreamDelta | StreamEnd


class EngineLoad(BaseModel):
    """What the local engine does, as it was seen within the last seconds; the counts are totals since its start."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    running: int
    waiting: int
    max_running: int
    finished: int
    aborted: int
    generated_tokens: int


class CircuitInfo(BaseModel):
    """What a replica knows about one target: `closed` (called as usual), `open` (left alone), `half_open` (one call probes it).

    `retry_after_s` is given while it is not called; a closed circuit has it while the provider asked for a rest.
    """

    model_config = ConfigDict(frozen=True)

    state: Literal["closed", "open", "half_open"]
    in_flight: int
    retry_after_s: float | None = None


class ModelInfo(BaseModel):
    """One row of `GET /internal/llm/models`, as the replica that answers sees it.

    `reason` tells why a model is not available, `load` only the local engine has, `spills_over` only models with `spill`.
    """

    id: str
    provider: str
    name: str
    available: bool
    reason: str | None = None
    load: EngineLoad | None = None
    circuit: CircuitInfo = CircuitInfo(state="closed", in_flight=0)
    fallbacks: list[str] = []
    spills_over: bool | None = None


class ModelList(BaseModel):
    """Body of `GET /internal/llm/models`."""

    models: list[ModelInfo]
