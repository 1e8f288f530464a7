"""Answers of the LLM proxy, whole or streamed, and what providers return to it."""

from decimal import Decimal
from typing import Any

from pydantic import BaseModel

from contracts.llm.messages import ToolCall
from contracts.shapes import Frozen


class TokenUsage(Frozen):
    """Tokens as the provider counted them.

    `estimated` marks a count of ours where the provider gave none.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    estimated: bool | None = None


class Attempt(Frozen):
    """One try at one target. `outcome` is `ok` or the error's type."""

    provider: str
    model: str
    outcome: str
    latency_ms: float


class ProxyResponse(BaseModel):
    """Body of a successful `POST /internal/llm/proxy`. Absent optional fields are left out.

    `refusal` is what the model said in place of an answer, from providers that tell the two apart.
    `cost_usd` is that of all attempts, a decimal text; absent where a price is not known, and for
    an answer from the cache.
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
    cost_usd: Decimal | None = None
    cached: bool | None = None
    attempts: list[Attempt] | None = None


class LLMResponse(BaseModel):
    """What a provider returns for one whole answer.

    `reasoning` and `refusal` are kept apart from `content`.
    """

    content: str
    usage: TokenUsage
    finish_reason: str | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning: str | None = None
    refusal: str | None = None


class StreamDelta(BaseModel):
    """One piece of a streamed answer: text, reasoning, or fragments of tool calls.

    The first fragment of a call has `index`, `id`, `type`, and a `function` with the name; later
    ones have `index` and a `function` with a piece of the `arguments`, which are text.

    `usage` is what the answer took so far, from providers that tell it with every piece.

    """

    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    refusal: str | None = None
    usage: TokenUsage | None = None


class StreamEnd(BaseModel):
    """The regular end of a stream. A provider that ends without it was cut off.

    The proxy adds `attempts`, and `written_by` (`provider/model` of each part, in order) where
    several wrote one answer; `cached` marks an answer from the response cache. `unreadable` counts
    the provider's events that had to be passed over.
    """

    finish_reason: str
    usage: TokenUsage
    unreadable: int | None = None
    attempts: list[Attempt] | None = None
    written_by: list[str] | None = None
    cached: bool | None = None


StreamItem = StreamDelta | StreamEnd


class AnswerParts:
    """Joins the deltas of one stream to a whole answer."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._refusal: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}

    def add(self, delta: StreamDelta) -> None:
        """Adds the next delta."""
        self._content.append(delta.content or "")
        self._reasoning.append(delta.reasoning or "")
        self._refusal.append(delta.refusal or "")
        for fragment in delta.tool_calls or ():
            _join_fragment(self._calls, fragment)

    def fields(self, end: StreamEnd) -> dict[str, Any]:
        """Returns the fields of an LLMResponse; tool calls are not validated."""
        return {
            "content": "".join(self._content),
            "usage": end.usage,
            "finish_reason": end.finish_reason,
            "tool_calls": [self._calls[index] for index in sorted(self._calls)] or None,
            "reasoning": "".join(self._reasoning) or None,
            "refusal": "".join(self._refusal) or None,
        }


def _join_fragment(calls: dict[int, dict[str, Any]], fragment: dict[str, Any]) -> None:
    """Adds a fragment of a StreamDelta to the call that it names by its index."""
    call = calls.get(fragment["index"])
    if call is None:
        call = calls[fragment["index"]] = {
            key: value for key, value in fragment.items() if key != "index"
        }
        call["function"] = {"name": "", "arguments": ""}
    function = call["function"]
    for part, piece in fragment["function"].items():
        # A string that only a local variable refers to grows in place.
        text, function[part] = function[part], ""
        text += piece
        function[part] = text
