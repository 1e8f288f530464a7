"""Assembles a whole answer from a stream, so that silence is noticed after first-token or idle
time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from common.tasks import close_if_closable
from contracts.errors import UpstreamInvalidResponse
from contracts.llm.answers import LLMResponse, StreamEnd, StreamItem, join_fragment
from providers.shapes import whole_answer
from providers.tool_fragments import parse_tool_calls


async def assembled(items: AsyncIterator[StreamItem]) -> LLMResponse:
    """Returns the answer that `items` add up to, and closes them.

    Raises:
        UpstreamInvalidResponse: tool calls are incomplete, or a value is over a bound of ours.
        DaarionError: as the stream.
    """
    content: list[str] = []
    reasoning: list[str] = []
    refusal: list[str] = []
    calls: dict[int, dict[str, Any]] = {}
    end: StreamEnd | None = None
    try:
        async for item in items:
            if isinstance(item, StreamEnd):
                end = item
                continue
            content.append(item.content or "")
            reasoning.append(item.reasoning or "")
            refusal.append(item.refusal or "")
            for fragment in item.tool_calls or ():
                join_fragment(calls, fragment)
    finally:
        await close_if_closable(items)
    if end is None:
        raise UpstreamInvalidResponse(
            "the provider ended its stream before the answer was complete"
        )
    return whole_answer(
        content="".join(content),
        usage=end.usage,
        finish_reason=end.finish_reason,
        tool_calls=parse_tool_calls([calls[index] for index in sorted(calls)]),
        reasoning="".join(reasoning) or None,
        refusal="".join(refusal) or None,
    )
