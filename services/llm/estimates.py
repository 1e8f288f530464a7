"""What a call may take, estimated before it. Pure, and cheap for prompts of a megabyte."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from functools import cached_property
from typing import Any

import orjson

from contracts.llm.answers import TokenUsage
from contracts.llm.limits import NANO_PER_USD, Estimate
from contracts.llm.messages import ChatMessage
from contracts.llm.ports import Prices
from contracts.llm.requests import ProxyRequest
from contracts.llm.routing import Route

BYTES_PER_TOKEN = 3
"""Fewer than models have on average (about four in English; two letters, that is four bytes, in
Ukrainian)."""
TOKENS_PER_MESSAGE = 4
TOKENS_PER_PART = 1_000
"""Of a part of a message that is no text, such as an image."""
DEFAULT_COMPLETION_TOKENS = 1_024
"""Set aside for an answer whose request has no `max_tokens`; where a limit counts tokens or money,
also the most that it may have."""


class CallEstimate(Estimate):
    """Tokens of prompt and longest answer, and their cost at the dearest target of the route.

    Computed when first read, because most calls have no limit that reads them.
    """

    def __init__(
        self, request: ProxyRequest, route: Route, prices: Prices
    ) -> None:  # the fields of its base are worked out below
        self._request = request
        self._route = route
        self._prices = prices

    @property
    def is_counted(self) -> bool:
        """Whether a limit of tokens or money asked what the call may take."""
        return "tokens" in self.__dict__ or "nano_usd" in self.__dict__

    @cached_property
    def prompt_tokens(self) -> int:
        """About how many tokens the prompt has."""
        return prompt_tokens(self._request)

    @cached_property
    def tokens(self) -> int:
        """Tokens of prompt and answer."""
        return self.prompt_tokens + completion_tokens(self._request)

    @cached_property
    def nano_usd(self) -> int:
        """What they cost, in nano-dollars; zero where no price is known."""
        prompt, completion = self.prompt_tokens, completion_tokens(self._request)
        usage = TokenUsage.model_construct(
            prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion
        )
        costs = [
            cost
            for target in self._route.every_target
            if (cost := self._prices.cost(target, usage)) is not None
        ]
        return int(max(costs, default=Decimal(0)) * NANO_PER_USD)


def completion_tokens(request: ProxyRequest) -> int:
    """Returns how many tokens are set aside for the answer."""
    return request.max_tokens or DEFAULT_COMPLETION_TOKENS


def prompt_tokens(request: ProxyRequest) -> int:
    """Returns about how many tokens the prompt has, rather too many than too few."""
    size = sum(_message_bytes(message) for message in request.messages)
    if request.tools:
        size += len(orjson.dumps(request.tools))
    return -(-size // BYTES_PER_TOKEN) + TOKENS_PER_MESSAGE * len(request.messages)


def rough_prompt_tokens(request: ProxyRequest) -> int:
    """Returns the same without reading the texts; a letter beyond ASCII counts as two bytes."""
    size = 0
    for message in request.messages:
        content = message.get("content")
        if isinstance(content, str):
            size += len(content) if content.isascii() else 2 * len(content)
        else:
            size += sum(_part_bytes(content or ()))
    return -(-size // BYTES_PER_TOKEN) + TOKENS_PER_MESSAGE * len(request.messages)


def _message_bytes(message: ChatMessage) -> int:
    content = message.get("content")
    size = _bytes(content) if isinstance(content, str) else sum(_part_bytes(content or ()))
    calls = message.get("tool_calls")
    return size + len(orjson.dumps(calls)) if calls else size


def _part_bytes(parts: Iterable[Any]) -> Iterable[int]:
    return (
        _bytes(part.get("text") or "")
        if part.get("type") == "text"
        else TOKENS_PER_PART * BYTES_PER_TOKEN
        for part in parts
    )


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
