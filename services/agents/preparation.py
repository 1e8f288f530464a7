"""What a run begins with: the model, the conversation, memories and tools."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass

from contracts.errors import DaarionError
from contracts.memory.api import MAX_QUERY_CHARS, Item
from contracts.tools.api import ToolDefinition
from services.agents.channel_reader import ChannelReader
from services.agents.context import Context
from services.agents.journal import RunStart, start_of
from services.agents.prompt import RunInputs
from services.agents.scope import PipelinePorts, RunScope

LIST_TIMEOUT_S = 10.0


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
            RunInputs(context, tuple(memories)),
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
