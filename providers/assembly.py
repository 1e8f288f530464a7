"""Assembles a whole answer from a stream, so that silence is noticed after first-token or idle
time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from common.tasks import close_if_closable
from contracts.errors import UpstreamInvalidResponse
from contracts.llm.answers import AnswerParts, LLMResponse, StreamEnd, StreamItem
from providers.shapes import whole_answer
from providers.tool_fragments import parse_tool_calls


async def assembled(items: AsyncIterator[StreamItem]) -> LLMResponse:
    """Returns the answer that `items` add up to, and closes them.

    Raises:
        UpstreamInvalidResponse: tool calls are incomplete, or a value is over a bound of ours.
        DaarionError: as the stream.
    """
    parts = AnswerParts()
    end: StreamEnd | None = None
    try:
        async for item in items:
            if isinstance(item, StreamEnd):
                end = item
            else:
                parts.add(item)
    finally:
        await close_if_closable(items)
    if end is None:
        raise UpstreamInvalidResponse(
            "the provider ended its stream before the answer was complete"
        )
    fields = parts.fields(end)
    fields["tool_calls"] = parse_tool_calls(fields["tool_calls"])
    return whole_answer(**fields)
