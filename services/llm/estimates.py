"""Estimates tokens and cost before a call. Pure, and cheap for prompts of a megabyte."""

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
"""Below the average of about four bytes, in English and (two letters) in Ukrainian, so that
estimates are rather too high."""
TOKENS_PER_MESSAGE = 4
TOKENS_PER_PART = 1_000
"""Estimate for a message part other than text, such as an image."""
DEFAULT_COMPLETION_TOKENS = 1_024
"""Reserved for an answer when the request has no `max_tokens`. Under a limit of tokens or money it
is also the answer's maximum."""


class CallEstimate(Estimate):
    """Tokens of prompt and longest answer, and their cost at the most expensive target.

    Computed when first read, because most calls have no limit that reads them.
    """

    # The base's fields are the cached properties below, so its `__init__` is not called.
    def __init__(self, request: ProxyRequest, route: Route, prices: Prices) -> None:
        self._request = request
        self._route = route
        self._prices = prices

    @property
    def is_counted(self) -> bool:
        """Whether a limit of tokens or money read the estimate."""
        return "tokens" in self.__dict__ or "nano_usd" in self.__dict__

    @cached_property
    def prompt_tokens(self) -> int:
        """Estimated tokens of the prompt."""
        return prompt_tokens(self._request)

    @cached_property
    def tokens(self) -> int:
        """Tokens of prompt and answer."""
        return self.prompt_tokens + completion_tokens(self._request)

    @cached_property
    def nano_usd(self) -> int:
        """Cost of these tokens in nano-dollars; zero where no price is known."""
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
    """Returns the tokens reserved for the answer."""
    return request.max_tokens or DEFAULT_COMPLETION_TOKENS


def prompt_tokens(request: ProxyRequest) -> int:
    """Returns an estimate of the prompt's tokens that is rather too high than too low."""
    size = sum(_message_bytes(message) for message in request.messages)
    if request.tools:
        size += len(orjson.dumps(request.tools))
    return -(-size // BYTES_PER_TOKEN) + TOKENS_PER_MESSAGE * len(request.messages)


def rough_prompt_tokens(request: ProxyRequest) -> int:
    """Returns a cheaper estimate that encodes no text: a character beyond ASCII is two bytes."""
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
