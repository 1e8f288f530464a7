"""An open stream: counts its items, settles the call once, and fails over when it breaks."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from common.tasks import close_if_closable
from contracts.errors import DaarionError, UpstreamInvalidResponse
from contracts.llm.answers import StreamDelta, StreamEnd, StreamItem
from contracts.llm.messages import ChatMessage
from contracts.llm.ports import ChatProvider
from contracts.llm.requests import ChatOptions, ProxyRequest
from contracts.llm.routing import Target
from contracts.llm.usage import OUTCOME_OK
from services.llm.accounting import OUTCOME_CANCELLED, CallAccount, outcome_of
from services.llm.attempts import RouteAttempts, Served
from services.llm.continuation import continued
from services.llm.seams import Seam
from services.llm.thoughts import reasoning_of, thoughts_apart


@dataclass(frozen=True, slots=True)
class StartedStream:
    """A provider's stream whose first item has arrived."""

    first: StreamItem
    remaining: AsyncIterator[StreamItem]


class OpenStream:
    """A stream whose first item has arrived.

    Iterate it once, and close it however that ends: closing settles the call.

    With `resumes`, a break after the first content is hidden from the caller: the next target is
    asked to finish the answer. The joined stream ends in one StreamEnd, with every part's usage and
    target. Text that the next target repeats is left out; a target that starts over in other words
    counts as failed.
    """

    def __init__(
        self,
        served: Served[StartedStream],
        request: ProxyRequest,
        attempts: RouteAttempts,
        account: CallAccount,
        *,
        resumes: bool,
    ) -> None:
        self._served = served
        self._request = request
        self._attempts = attempts
        self._account = account
        # None: the answer cannot be resumed.
        self._answer_parts: list[str] | None = [] if resumes and _can_be_resumed(request) else None
        self._shown_deltas = 0
        self._trailing_space = ""
        self._seam: Seam | None = None
        self._part_has_text = False  # whether the current part has shown text
        self._earlier_targets: list[Target] = []
        self._ended = False

    @property
    def target(self) -> Target:
        """The target that answers now, or the one that finished the answer."""
        return self._served.target

    async def items(self) -> AsyncIterator[StreamItem]:
        """Yields every item, the last of which is a StreamEnd.

        Raises the error of a stream that breaks and cannot be resumed.
        """
        try:
            while not self._ended:
                stream = self._served.result
                try:
                    for part in self._without_repetition(stream.first):
                        yield self._account_for(part)
                    async for item in stream.remaining:
                        if self._seam is None:
                            yield self._account_for(item)
                            continue
                        for part in self._without_repetition(item):
                            yield self._account_for(part)
                    if not self._ended:
                        raise UpstreamInvalidResponse(
                            "the provider ended its stream before the answer was complete"
                        )
                except DaarionError as error:
                    await close_if_closable(stream.remaining)
                    self._attempts.failed(self._served.target, self._served.permit, error)
                    self._served = await self._resume(error)
        except Exception as error:
            self._account.settle(outcome_of(error))
            raise

    async def close(self) -> None:
        """Stops the upstream, and settles an unfinished call as cancelled by its caller."""
        self._account.settle(OUTCOME_CANCELLED)
        self._served.permit.released(time.monotonic())
        await close_if_closable(self._served.result.remaining)

    def _without_repetition(self, item: StreamItem) -> Sequence[StreamItem]:
        """Returns the item without text that was shown before the break.

        Raises UpstreamInvalidResponse when a continuation starts over in other words.
        """
        if self._seam is None:
            return (item,)
        try:
            text = (
                self._seam.finish()
                if isinstance(item, StreamEnd)
                else self._seam.feed(item.content or "")
            )
        except UpstreamInvalidResponse:
            self._served.permit.succeeded(time.monotonic())  # the target is up, its answer unusable
            if self._part_has_text:
                self._answer_parts = None
            raise
        if isinstance(item, StreamEnd):
            return (StreamDelta(content=text), item) if text else (item,)
        shown = item.model_copy(update={"content": text or None})
        if text or item.reasoning or item.tool_calls or item.refusal:
            return (shown,)
        self._account.delta(item)
        return ()

    def _account_for(self, item: StreamItem) -> StreamItem:
        if isinstance(item, StreamEnd):
            return self._account_for_end(item)
        self._account.delta(item)
        if self._answer_parts is None:
            return item
        if item.tool_calls or item.refusal:
            # Another target cannot continue half a tool call or a refusal.
            self._answer_parts = None
            return item
        item = self._without_repeated_space(item)
        self._shown_deltas += 1
        self._part_has_text = self._part_has_text or bool(item.content)
        self._answer_parts.append(item.content or "")
        return item

    def _without_repeated_space(self, item: StreamDelta) -> StreamDelta:
        """Drops white space with which the broken part had ended."""
        if not self._trailing_space or not item.content:
            return item
        space, self._trailing_space = self._trailing_space, ""
        return item.model_copy(update={"content": item.content.removeprefix(space)})

    def _account_for_end(self, item: StreamEnd) -> StreamEnd:
        self._ended = True
        self._served.permit.succeeded(time.monotonic())
        self._account.unreadable_events += item.unreadable or 0
        self._account.attempt_ended(OUTCOME_OK, item.usage)
        self._account.settle(OUTCOME_OK, item.finish_reason)
        writers = [*self._earlier_targets, self._served.target]
        return StreamEnd(
            finish_reason=item.finish_reason,
            usage=self._account.usage if self._earlier_targets else item.usage,
            attempts=self._account.attempts,
            written_by=[f"{target.provider}/{target.name}" for target in writers]
            if self._earlier_targets
            else None,
        )

    async def _resume(self, error: DaarionError) -> Served[StartedStream]:
        """Returns the stream that continues this one; raises `error` when no target can."""
        if self._answer_parts is None or not self._attempts.can_continue_after(error):
            raise error
        text = "".join(self._answer_parts)
        partial_answer, self._trailing_space = text.rstrip(), text[len(text.rstrip()) :]
        options = self._remaining_options()
        if partial_answer and not self._attempts.keep_targets(
            lambda provider: provider.continuation != "none"
        ):
            raise error
        if partial_answer and self._part_has_text:
            self._earlier_targets.append(self._served.target)

        async def ask(provider: ChatProvider, target: Target) -> StartedStream:
            continuation = (
                continued(provider.continuation, self._request.messages, partial_answer, options)
                if partial_answer
                else None
            )
            messages, settings = continuation or (self._request.messages, options)
            self._seam = (
                Seam(partial_answer, in_words=messages[-1]["role"] != "assistant")
                if partial_answer
                else None
            )
            return await start_stream(provider, target, self._attempts, messages, settings)

        try:
            served = await self._attempts.serve(ask)
        except DaarionError:
            raise error from None
        served.permit.alive(time.monotonic())
        self._part_has_text = False
        return served

    def _remaining_options(self) -> ChatOptions:
        options = self._account.options()
        if "max_tokens" in options:
            options["max_tokens"] = max(1, options["max_tokens"] - self._shown_deltas)
        return options


async def start_stream(
    provider: ChatProvider,
    target: Target,
    attempts: RouteAttempts,
    messages: list[ChatMessage],
    options: ChatOptions,
) -> StartedStream:
    """Returns a stream of `target` once its first item has arrived.

    A role or a keep-alive is not an item. Raises as the provider.
    """
    items = thoughts_apart(
        provider.stream(messages, target, attempts.deadline, **options),
        reasoning_of(target, messages),
    )
    try:
        return StartedStream(await anext(items), items)
    except StopAsyncIteration:
        raise UpstreamInvalidResponse("the provider ended its stream before it answered") from None


def _can_be_resumed(request: ProxyRequest) -> bool:
    """Whether another target could continue half an answer: plain text, no tools, no JSON."""
    wanted = request.response_format
    return not request.tools and (wanted is None or wanted["type"] == "text")
