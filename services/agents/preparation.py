"""What a run begins with: the model, the conversation, memories and tools."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import timedelta

from common.retry import retry
from contracts.deadline import Deadline
from contracts.errors import DaarionError, NotFound, Unavailable
from contracts.memory.api import MAX_QUERY_CHARS, Item
from contracts.tools.api import ToolDefinition
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
from services.agents.journal import RunStart, start_of
from services.agents.scope import EmptyQuestionError, NothingToAnswerError, PipelinePorts, RunScope

CONTEXT_TIMEOUT_S = 10.0
PAGES_BACK = 10
"""How many pages of `MAX_RECENT` older messages are searched for the triggering one."""
CLOCK_SKEW = timedelta(seconds=5)
"""How far the clock of a messaging service without ids may differ from ours."""
LIST_TIMEOUT_S = 10.0


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


@dataclass(frozen=True)
class Prepared:
    """A run that can be put to its model. `scope` has the blueprint that fits the model; `tools`
    are those that may be called now, None when Toolcore cannot be reached.
    """

    scope: RunScope
    start: RunStart
    tools: list[ToolDefinition] | None


@dataclass(frozen=True)
class Preparation:
    """Collects what a run begins with, or reads it from the run's journal when it is resumed."""

    ports: PipelinePorts

    async def prepare(self, scope: RunScope) -> Prepared:
        """Raises what `ChannelReader.context` raises; without memory or tools the run goes on."""
        start = start_of(scope.run.journal)
        if start is None:
            model = await self._answering_model(scope)
        else:
            model = start.model
        scope = scope.fitted(model)
        tools = asyncio.ensure_future(self._tools(scope))  # beside channel and memory
        try:
            if start is None:
                start = await self._begin(scope, model, tools)
            return Prepared(scope, start, await tools)
        finally:
            tools.cancel()

    async def _answering_model(self, scope: RunScope) -> str | None:
        """The model that would answer now; None where the blueprint does not depend on it."""
        if scope.blueprint.small is None:
            return None
        with scope.recorder.step("models"):
            return await self.ports.model.answering(scope.blueprint.model, scope.deadline)

    async def _begin(
        self, scope: RunScope, model: str | None, tools: Awaitable[list[ToolDefinition] | None]
    ) -> RunStart:
        context = await ChannelReader(self.ports.messaging).context(scope)
        memories = await self._memories(scope, context)
        listed = await tools or []
        start = RunStart(
            context.question,
            context.earlier,
            tuple(memories),
            model,
            {tool.id: tool.effect for tool in listed},
            any(tool.outside for tool in listed),
        )
        scope.recorder.record_run_start(start)
        return start

    async def _memories(self, scope: RunScope, context: Context) -> list[Item]:
        """What memory recalls for the question; nothing when memory is away."""
        run, wanted = scope.run, scope.blueprint.memory
        if not wanted.recall:
            return []
        query = context.question.text[:MAX_QUERY_CHARS]
        try:
            with scope.recorder.step("memory") as record:
                until = scope.deadline.sooner(wanted.timeout_s)
                found = await self.ports.memory.recall(
                    run.tenant, run.channel_id, query, wanted.recall, until
                )
                found = [item for item in found if (item.score or 0.0) >= wanted.min_score]
                record.items = len(found)
        except DaarionError as error:
            scope.recorder.record_degraded("memory")
            scope.recorder.show("memory", ok=False, error=error.type)
            return []
        scope.recorder.show("memory", ok=True, items=len(found))
        return found

    async def _tools(self, scope: RunScope) -> list[ToolDefinition] | None:
        """The tools that blueprint and Toolcore both allow; None when Toolcore is away."""
        blueprint = scope.blueprint
        if not blueprint.tools or not blueprint.limits.tool_calls:
            return []
        try:
            with scope.recorder.step("tool_list") as record:
                listed = await self.ports.tools.allowed(
                    scope.run.tenant, scope.deadline.sooner(LIST_TIMEOUT_S)
                )
                found = [tool for tool in listed if tool.id in blueprint.tools]
                record.items = len(found)
        except DaarionError:
            scope.recorder.record_degraded("tools")
            return None
        return found
