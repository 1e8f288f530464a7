"""Separates reasoning from the answer where a provider sends both as one text.

Reasoning stands between tags at the very start of the answer, before any other text; later on, the
same tags are part of the answer. A model whose prompt ends in the opening tag
(`reasoning: opened`) never sends that tag itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from common.tasks import close_if_closable
from contracts.llm.answers import LLMResponse, StreamDelta, StreamEnd, StreamItem
from contracts.llm.messages import ChatMessage
from contracts.llm.routing import Reasoning, Target
from services.llm.seams import overlap

OPENINGS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
}
"""The opening tags that models are trained to write, each with its closing tag."""
CLOSINGS = tuple(OPENINGS.values())
_FIRST_OF_TAGS = ("<", "[")
MAX_LEAD = 256
"""Characters of white space allowed before the first tag; more is an answer, not held back."""


class Parts(NamedTuple):
    """A text's answer and its reasoning."""

    content: str
    thought: str


class ThoughtSplitter:
    """Splits a text that arrives in pieces; holds back what may be the first half of a tag.

    `opened`: the prompt ends in the opening tag. `inside`: a thought has begun and has not
    ended. `answers`: the answer has begun, so everything that follows is part of it.
    """

    def __init__(self, *, opened: bool = False) -> None:
        self.inside = False
        self.answers = False
        self._opened = opened
        self._blank = True
        self._thought_before = False
        self._closings = CLOSINGS
        self._held = ""

    def feed(self, text: str) -> Parts:
        """Returns the parts that are certain by now."""
        if self.answers:
            return Parts(text, "")
        rest, self._held = self._held + text, ""
        thought = ""
        while rest and not self.answers:
            if self.inside:
                more, rest = self._in_thought(rest)
                thought += more
            else:
                rest = self._at_start(rest)
        return Parts(rest, thought)

    def finish(self) -> Parts:
        """Returns what was held back."""
        held, self._held = self._held, ""
        return Parts("", held) if self.inside or self._opened else Parts(held, "")

    def _at_start(self, rest: str) -> str:
        """Decides whether a thought or the answer begins here; returns the text after its tag."""
        begun = rest.lstrip()
        if self._thought_before:
            rest = begun
        if len(rest) - len(begun) <= MAX_LEAD:
            for opening, closing in OPENINGS.items():
                if begun.startswith(opening):
                    self._begin_thought((closing,))
                    return begun[len(opening) :]
            if any(opening.startswith(begun) for opening in OPENINGS):
                self._held = rest
                return ""
        if self._opened:
            self._begin_thought(CLOSINGS)
        else:
            self.answers = True
        return rest

    def _begin_thought(self, closings: tuple[str, ...]) -> None:
        self.inside, self._blank, self._opened, self._closings = True, True, False, closings

    def _in_thought(self, rest: str) -> tuple[str, str]:
        """Returns the thought's text, and the text after it."""
        if self._blank:
            rest = rest.lstrip()
            self._blank = not rest
        ends = [
            (place, closing) for closing in self._closings if (place := rest.find(closing)) >= 0
        ]
        if ends:
            place, closing = min(ends)
            self.inside, self._thought_before = False, True
            return rest[:place], rest[place + len(closing) :]
        kept = max(overlap(rest, closing) for closing in self._closings)
        self._held = rest[len(rest) - kept :]
        return rest[: len(rest) - kept], ""


class WholeParts(NamedTuple):
    """A whole text's answer and reasoning; `unfinished`: it ends inside a thought."""

    content: str
    thought: str
    unfinished: bool


def whole_parts(text: str, reasoning: Reasoning) -> WholeParts:
    """Splits a whole answer of a model with this `reasoning` setting.

    For a reasoning model, a closing tag without an opening one before it means that the prompt
    ended in the opening tag.
    """
    opened = reasoning == "opened"
    if reasoning and not opened:
        ended, closing, _ = text.partition("</think>")
        opened = bool(closing) and "<think>" not in ended
    splitter = ThoughtSplitter(opened=opened)
    first, last = splitter.feed(text), splitter.finish()
    return WholeParts(first.content + last.content, first.thought + last.thought, splitter.inside)


def reasoning_of(target: Target, messages: Sequence[ChatMessage]) -> Reasoning:
    """Returns the target's reasoning; False when `messages` end in an answer to be continued."""
    return False if messages[-1]["role"] == "assistant" else target.reasoning


def without_thoughts(answer: LLMResponse, reasoning: Reasoning) -> LLMResponse:
    """Returns the answer with thoughts moved to `reasoning` and without unfinished tool calls."""
    if not reasoning and not answer.content.lstrip().startswith(_FIRST_OF_TAGS):
        return answer
    content, thought, unfinished = whole_parts(
        answer.content, False if answer.reasoning else reasoning
    )
    if not thought and content == answer.content:
        return answer
    changes: dict[str, Any] = {
        "content": content,
        "reasoning": (answer.reasoning or "") + thought or None,
    }
    if unfinished and answer.tool_calls:
        changes |= {"tool_calls": None, "finish_reason": _without_calls(answer.finish_reason)}
    return answer.model_copy(update=changes)


async def thoughts_apart(
    items: AsyncIterator[StreamItem], reasoning: Reasoning
) -> AsyncIterator[StreamItem]:
    """Yields the stream with thoughts moved to `reasoning`; always closes `items`."""
    apart = _Apart(reasoning)
    try:
        async for item in items:
            for kept in apart.end(item) if isinstance(item, StreamEnd) else apart.delta(item):
                yield kept
    finally:
        await close_if_closable(items)


class _Apart:
    """The state of one stream; `_dropped`: it had tool calls inside a thought."""

    def __init__(self, reasoning: Reasoning) -> None:
        self._splitter = ThoughtSplitter(opened=reasoning == "opened")
        self._is_first = True
        self._called = False
        self._dropped = False

    def delta(self, item: StreamDelta) -> Sequence[StreamItem]:
        if self._splitter.answers and not self._dropped:
            return (item,)
        if self._is_first and item.reasoning:
            # The provider separates reasoning itself, so its text is the answer.
            self._splitter = ThoughtSplitter()
        self._is_first = False
        if not item.content and not (item.tool_calls and self._splitter.inside):
            self._called |= bool(item.tool_calls)
            return (item,)
        content, thought = self._splitter.feed(item.content or "")
        calls = None if self._splitter.inside else item.tool_calls
        self._called |= bool(calls)
        self._dropped |= bool(item.tool_calls and not calls)
        found = _delta(Parts(content, (item.reasoning or "") + thought), item, calls)
        return (
            (found,)
            if found.content or found.reasoning or found.tool_calls or found.refusal
            else ()
        )

    def end(self, item: StreamEnd) -> Sequence[StreamItem]:
        rest = self._splitter.finish()
        if self._dropped and not self._called:
            item = item.model_copy(update={"finish_reason": _without_calls(item.finish_reason)})
        return (_delta(rest), item) if any(rest) else (item,)


def _delta(
    parts: Parts, item: StreamDelta | None = None, calls: list[dict[str, Any]] | None = None
) -> StreamDelta:
    changes = {
        "content": parts.content or None,
        "reasoning": parts.thought or None,
        "tool_calls": calls,
    }
    return (item or StreamDelta()).model_copy(update=changes)


def _without_calls(finish_reason: str | None) -> str | None:
    return "stop" if finish_reason == "tool_calls" else finish_reason
