"""Reads from the channel what a run answers and what was said before it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from common.retry import retry
from contracts.deadline import Deadline
from contracts.errors import NotFound, Unavailable
from contracts.workspace.messaging_service import MAX_RECENT, ChannelMessage, Messaging
from services.agents.context import (
    Context,
    channel_context,
    direct_context,
    find_trigger,
    is_from_agent,
    knows_ids,
    newest_human,
    window,
)
from services.agents.scope import EmptyQuestionError, NothingToAnswerError, RunScope

CONTEXT_TIMEOUT_S = 10.0
PAGES_BACK = 10
"""How many pages of `MAX_RECENT` older messages are searched for the triggering one."""
CLOCK_SKEW = timedelta(seconds=5)
"""How far the clock of a messaging service without ids may differ from ours."""


@dataclass(frozen=True)
class ChannelReader:
    """Reads channels for runs."""

    messaging: Messaging

    async def context(self, scope: RunScope) -> Context:
        """Returns the question and the earlier messages that fit into the prompt.

        Raises:
            EmptyQuestionError, NothingToAnswerError: see there.
            DaarionError: the messaging service failed.
        """
        with scope.recorder.step("context") as record:
            context = await self._read(scope)
            record.items = len(context.earlier)
        scope.recorder.show("context", messages=len(context.earlier))
        return context

    async def _read(self, scope: RunScope) -> Context:
        run, blueprint = scope.run, scope.blueprint
        is_channel_message = run.invocation.entrypoint == "channel_message"
        messages: list[ChannelMessage] = []
        if run.channel_id is not None and (is_channel_message or blueprint.history):
            limit = max(1, blueprint.history)
            messages = await self._recent(run.channel_id, limit, scope.deadline)
        context = direct_context(run.invocation, messages)
        if is_channel_message:
            context = channel_context(*await self._around_trigger(scope, messages))
        if not context.question.text.strip():
            raise EmptyQuestionError
        if not blueprint.history:
            return Context(context.question)
        earlier = context.earlier[-blueprint.history :]
        return Context(context.question, tuple(window(earlier, blueprint.limits.context_tokens)))

    async def _recent(
        self, channel_id: str, limit: int, deadline: Deadline, before: ChannelMessage | None = None
    ) -> list[ChannelMessage]:
        """The channel's newest messages, or those before one; retried while the service is away."""
        until = deadline.sooner(CONTEXT_TIMEOUT_S)
        return await retry(
            lambda: self.messaging.recent_messages(channel_id, limit, until, before),
            lambda error: isinstance(error, Unavailable),
            within_s=until.remaining(),
        )

    async def _around_trigger(
        self, scope: RunScope, messages: list[ChannelMessage]
    ) -> tuple[list[ChannelMessage], ChannelMessage]:
        """The triggering message and a page of messages that holds it."""
        run, deadline = scope.run, scope.deadline
        assert run.channel_id is not None  # channel messages have one
        trigger = find_trigger(messages, run.trigger_id)
        if trigger is None:  # many newer messages, or an unknown id
            messages = await self._recent(run.channel_id, MAX_RECENT, deadline)
            trigger = find_trigger(messages, run.trigger_id)
        if trigger is None and not knows_ids(messages):
            trigger = newest_human(messages, run.created_at + CLOCK_SKEW)
        elif trigger is None:
            messages, trigger = await self._further_back(
                run.channel_id, run.trigger_id, messages, deadline
            )
        if trigger is None:
            raise NothingToAnswerError(NotFound.type)
        if is_from_agent(trigger):
            raise NothingToAnswerError
        return messages, trigger

    async def _further_back(
        self, channel_id: str, trigger_id: str, newest: list[ChannelMessage], deadline: Deadline
    ) -> tuple[list[ChannelMessage], ChannelMessage | None]:
        """The page of older messages that holds the triggering one, within `PAGES_BACK` pages."""
        page = newest
        for _ in range(PAGES_BACK):
            oldest = page[0]
            if oldest.id is None:
                break
            page = await self._recent(channel_id, MAX_RECENT, deadline, before=oldest)
            trigger = find_trigger(page, trigger_id)
            if trigger is not None:
                return page, trigger
            # The channel's beginning, or a service that ignores `before`.
            if not page or page[0].created_at >= oldest.created_at:
                break
        return newest, None
