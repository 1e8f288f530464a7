"""From a question to an answer: context, memory, model, tools, model again, and so on until there is a text for people."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from contracts.agents.api import AgentMemory, AgentTools, Blueprint, ChatModel, ModelRequest
from contracts.deadline import Deadline
from contracts.errors import ContextLengthExceeded, DaarionError, NotFound, Unavailable
from contracts.llm.answers import ProxyResponse
from contracts.llm.messages import NO_ARGUMENTS, ToolCall
from contracts.memory.api import MAX_QUERY_CHARS, Item
from contracts.tools.api import ToolDefinition
from contracts.workspace.messaging import MAX_RECENT, ChannelMessage, Messaging
from services.agents.choices import Choices, choices_of
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
from services.agents.journal import (
    Beginning,
    answer_entry,
    answers_of,
    beginning_entry,
    beginning_of,
)
from services.agents.prompt import (
    WAS_CUT,
    WAS_EMPTY,
    Dialogue,
    Known,
    assistant_message,
    note_message,
    results_message,
    tool_message,
)
from services.agents.recording import Recorder, patiently
from services.agents.texts import CUT, clean
from services.agents.tool_calls import Reading, WantedCall, read_answer, spoken
from services.agents.tool_turn import CallOutcome, Toolbox, Turn

CONTEXT_TIMEOUT_S = 10.0
LIST_TIMEOUT_S = 10.0
SHRINKS = 3
PAGES_BACK = 10
"""How many pages of 200 messages behind the newest a triggering message is looked for."""
CLOCK_SKEW = timedelta(seconds=5)
"""How much the clocks of a messaging-service without ids and of this one may differ."""
LAST_SHARE = 0.25
"""Of a run's time: once less is left, the next step is the last."""


class EmptyQuestionError(Exception):
    """The triggering message holds no text."""


class NothingToAnswerError(Exception):
    """The channel holds no such message, or an agent wrote it: agents do not answer each other."""


class NoAnswerError(Exception):
    """The model had its steps and said nothing that a person could read."""


@dataclass(frozen=True)
class Step:
    """One question to the model: its number from 0, whether it is the last, and what may be answered if that is bounded."""

    number: int
    final: bool
    choices: Choices | None = None


@dataclass(frozen=True)
class PipelinePorts:
    """What the pipeline stands on; all of it is reached over HTTP through the ingress."""

    messaging: Messaging
    memory: AgentMemory
    model: ChatModel
    tools: AgentTools


@dataclass(frozen=True)
class Pipeline:
    """Answers one run. Holds no state of its own."""

    ports: PipelinePorts

    async def answer(self, recorder: Recorder, blueprint: Blueprint, deadline: Deadline) -> str:
        """Returns the text of the reply.

        A model that turns out to be too small for the agent (its fallback, say) is asked again under the blueprint that is fitted to it.
        One that may only choose among a tool's results says nothing of its own: without results there is no answer.

        Raises:
            EmptyQuestionError, NothingToAnswerError, NoAnswerError: see there.
            RunLostError: another replica has taken the run.
            DaarionError: the messaging-service, the model or the database failed, or the deadline passed.
        """
        run = recorder.run
        run.tool_calls = 0  # those of an earlier attempt are counted again as they are made again
        beginning = beginning_of(run.journal)
        model = (
            beginning.model
            if beginning is not None
            else await self._answering(recorder, blueprint, deadline)
        )
        given, blueprint = blueprint, blueprint.fitted(model)
        limits = blueprint.limits
        tools = asyncio.ensure_future(self._tools(recorder, blueprint, deadline))
        try:
            beginning = beginning or await self._begun(recorder, blueprint, model, tools, deadline)
            allowed = await tools
        finally:
            tools.cancel()
        known = beginning.known
        dialogue = Dialogue(
            blueprint,
            run.nonce,
            _with_tools(known, allowed),
            allowed or [],
            run.invocation.payload.rewrite_prompt,
        )
        toolbox = Toolbox(blueprint, run, self.ports.tools, allowed or [], given=beginning.tools)
        recorded = answers_of(run.journal)
        tainted, final = beginning.tainted, False
        choices: Choices | None = None
        for number in range(limits.steps):
            final = not recorded and (
                final or _is_last(number, recorder, blueprint, toolbox, deadline)
            )
            step = Step(number, final, choices)
            is_recorded = bool(recorded)
            answer = (
                recorded.pop(0)
                if is_recorded
                else await self._ask(recorder, dialogue, step, deadline)
            )
            if choices is not None:
                return choices.reply(answer)
            if _is_too_small(blueprint, answer):
                if number:
                    raise NoAnswerError
                await _begin_again(recorder, beginning, answer.model_resolved)
                return await self.answer(recorder, given, deadline)
            reading = read_answer(answer)
            if final or (reading.text and not reading.calls):
                return _reply(blueprint, answer, reading)
            if not reading.calls:
                _remark(dialogue, answer, reading)
                continue
            calls = toolbox.readable(reading.calls)
            final = toolbox.is_repeat(calls)
            tainted = tainted or (not is_recorded and any(tool.outside for tool in toolbox.allowed))
            outcomes = await self._call(
                recorder, toolbox, calls, Turn(number, tainted, is_recorded), deadline
            )
            _add_results(dialogue, answer, reading, outcomes)
            tainted, choices = True, choices_of(blueprint.answer, outcomes)
            if choices is not None and not choices.values:
                return choices.settings.none
        raise NoAnswerError

    async def _answering(
        self, recorder: Recorder, blueprint: Blueprint, deadline: Deadline
    ) -> str | None:
        """The model that would answer now, where it makes a difference."""
        if blueprint.small is None:
            return None
        with recorder.step("models"):
            return await self.ports.model.answering(blueprint.model, deadline)

    async def _begun(
        self,
        recorder: Recorder,
        blueprint: Blueprint,
        model: str | None,
        tools: Awaitable[list[ToolDefinition] | None],
        deadline: Deadline,
    ) -> Beginning:
        """What was said, what is remembered and which tools there are; written down, so that a resumed run goes on from the same."""
        context = await self._context(recorder, blueprint, deadline)
        memories = await self._memories(recorder, blueprint, context, deadline)
        given = await tools or []
        effects = {tool.id: tool.effect for tool in given}
        beginning = Beginning(
            Known(context, tuple(memories)), model, effects, any(tool.outside for tool in given)
        )
        recorder.run.journal.append(beginning_entry(beginning))
        recorder.run.memory_ids = [item.id for item in memories]
        recorder.save_soon()  # nothing has been done yet: an attempt that ends here leaves nothing that the next one must know
        return beginning

    async def _context(
        self, recorder: Recorder, blueprint: Blueprint, deadline: Deadline
    ) -> Context:
        run = recorder.run
        with recorder.step("context") as record:
            messages: list[ChannelMessage] = []
            if run.channel_id is not None and (
                run.invocation.entrypoint == "channel_message" or blueprint.history
            ):
                messages = await self._recent(run.channel_id, max(1, blueprint.history), deadline)
            context = direct_context(run.invocation, messages)
            if run.invocation.entrypoint == "channel_message":
                context = channel_context(*await self._around_trigger(recorder, messages, deadline))
            if not context.question.text.strip():
                raise EmptyQuestionError
            earlier = (
                window(context.earlier[-blueprint.history :], blueprint.limits.context_tokens)
                if blueprint.history
                else []
            )
            record.items = len(earlier)
        recorder.show("context", messages=len(earlier))
        return Context(context.question, tuple(earlier))

    async def _recent(
        self, channel_id: str, limit: int, deadline: Deadline, before: ChannelMessage | None = None
    ) -> list[ChannelMessage]:
        """The channel's newest messages, or those before one; a messaging-service that is away for a moment is asked again."""
        until = deadline.sooner(CONTEXT_TIMEOUT_S)
        messaging = self.ports.messaging
        return await patiently(
            lambda: messaging.recent_messages(channel_id, limit, until, before),
            CONTEXT_TIMEOUT_S,
            (Unavailable,),
        )

    async def _around_trigger(
        self, recorder: Recorder, messages: list[ChannelMessage], deadline: Deadline
    ) -> tuple[list[ChannelMessage], ChannelMessage]:
        run = recorder.run
        assert run.channel_id is not None  # channel messages have one
        trigger = find_trigger(messages, run.trigger_id)
        if trigger is None:  # much was said since, or nobody knows that id
            messages = await self._recent(run.channel_id, MAX_RECENT, deadline)
            trigger = find_trigger(messages, run.trigger_id)
        if trigger is None and not knows_ids(messages):
            trigger = newest_human(messages, run.created_at + CLOCK_SKEW)
        elif trigger is None:
            messages, trigger = await self._further_back(
                run.channel_id, run.trigger_id, messages, deadline
            )
        if trigger is None:
            run.error = NotFound.type
            raise NothingToAnswerError
        if is_from_agent(trigger):
            raise NothingToAnswerError
        return messages, trigger

    async def _further_back(
        self, channel_id: str, trigger_id: str, newest: list[ChannelMessage], deadline: Deadline
    ) -> tuple[list[ChannelMessage], ChannelMessage | None]:
        """The page of older messages with the triggering one, as far back as a backlog may reach."""
        page = newest
        for _ in range(PAGES_BACK):
            oldest = page[0]
            if oldest.id is None:
                break
            page = await self._recent(channel_id, MAX_RECENT, deadline, before=oldest)
            trigger = find_trigger(page, trigger_id)
            if trigger is not None:
                return page, trigger
            if (
                not page or page[0].created_at >= oldest.created_at
            ):  # the beginning, or a service that cannot go back
                break
        return newest, None

    async def _memories(
        self, recorder: Recorder, blueprint: Blueprint, context: Context, deadline: Deadline
    ) -> list[Item]:
        """What memory knows; without memory the run goes on."""
        run, wanted = recorder.run, blueprint.memory
        if not wanted.recall:
            return []
        query = context.question.text[:MAX_QUERY_CHARS]
        try:
            with recorder.step("memory") as record:
                until = deadline.sooner(wanted.timeout_s)
                found = await self.ports.memory.recall(
                    run.tenant, run.channel_id, query, wanted.recall, until
                )
                found = [item for item in found if (item.score or 0.0) >= wanted.min_score]
                record.items = len(found)
        except DaarionError as error:
            recorder.degrade("memory")
            recorder.show("memory", ok=False, error=error.type)
            return []
        recorder.show("memory", ok=True, items=len(found))
        return found

    async def _tools(
        self, recorder: Recorder, blueprint: Blueprint, deadline: Deadline
    ) -> list[ToolDefinition] | None:
        """The tools that both the blueprint and Toolcore allow; None when Toolcore cannot be asked."""
        if not blueprint.tools or not blueprint.limits.tool_calls:
            return []
        try:
            with recorder.step("tool_list") as record:
                listed = await self.ports.tools.allowed(
                    recorder.run.tenant, deadline.sooner(LIST_TIMEOUT_S)
                )
                found = [tool for tool in listed if tool.id in blueprint.tools]
                record.items = len(found)
        except DaarionError:
            recorder.degrade("tools")
            return None
        return found

    async def _ask(
        self, recorder: Recorder, dialogue: Dialogue, step: Step, deadline: Deadline
    ) -> ProxyResponse:
        """One answer of the model, written down before anything is done about it. A prompt that is too long is made shorter."""
        run = recorder.run
        for attempt in range(SHRINKS + 1):
            deadline.check()
            try:
                with recorder.step("llm") as record:
                    answer = await self.ports.model.chat(
                        _request(dialogue, step), run.tenant, run.channel_id, deadline
                    )
                    record.model, record.provider = answer.model_resolved, answer.provider
                    record.prompt_tokens, record.completion_tokens = (
                        answer.usage.prompt_tokens,
                        answer.usage.completion_tokens,
                    )
                    record.finish_reason = answer.finish_reason
                break
            except ContextLengthExceeded:
                if attempt == SHRINKS:
                    raise
                dialogue.shrink()
        run.model = answer.model_resolved
        run.prompt_tokens += answer.usage.prompt_tokens
        run.completion_tokens += answer.usage.completion_tokens
        recorder.show(
            "llm",
            model=answer.model_resolved,
            tokens=answer.usage.total_tokens,
            ms=record.duration_ms,
        )
        reading = read_answer(answer)
        is_reply = (
            step.final or step.choices is not None or (bool(reading.text) and not reading.calls)
        )
        if (
            not is_reply
        ):  # a run that is taken over counts its steps, and so names its calls, as this one does
            run.journal.append(answer_entry(answer))
            recorder.save_soon()
        return answer

    async def _call(
        self,
        recorder: Recorder,
        toolbox: Toolbox,
        calls: Sequence[WantedCall],
        turn: Turn,
        deadline: Deadline,
    ) -> list[CallOutcome]:
        if toolbox.may_change(calls):
            await recorder.ensure_saved()  # before something happens that must not happen twice
        for call in calls:
            recorder.show("tool_call", tool_id=call.tool_id[:64] or None)
        with recorder.step("tools") as record:
            outcomes = await toolbox.make(
                calls, turn, _before_the_answer(toolbox.blueprint, deadline)
            )
            record.calls = [outcome.use for outcome in outcomes]
            record.ok = all(use.ok for use in record.calls)
        recorder.run.tool_calls += sum(use.executed for use in record.calls)
        recorder.show_calls(record.calls)
        return outcomes


def _is_last(
    step: int, recorder: Recorder, blueprint: Blueprint, toolbox: Toolbox, deadline: Deadline
) -> bool:
    """Whether this step gets no tools, so that the run ends in an answer."""
    run, limits = recorder.run, blueprint.limits
    return (
        step + 1 >= limits.steps
        or (step > 0 and toolbox.used >= limits.tool_calls)
        or run.prompt_tokens + run.completion_tokens >= limits.tokens
        or deadline.remaining() < LAST_SHARE * limits.seconds
    )


def _before_the_answer(blueprint: Blueprint, deadline: Deadline) -> Deadline:
    """The deadline of tools: the model still has to be told what became of them, and to answer."""
    left = deadline.remaining()
    return deadline.sooner(max(left / 2, left - LAST_SHARE * blueprint.limits.seconds))


def _is_too_small(blueprint: Blueprint, answer: ProxyResponse) -> bool:
    return blueprint.small is not None and answer.model_resolved in blueprint.small.models


async def _begin_again(recorder: Recorder, beginning: Beginning, model: str) -> None:
    """Writes down, before anything was done, that a model answers for which the blueprint has to be fitted."""
    recorder.run.journal[:] = [beginning_entry(replace(beginning, model=model))]
    await recorder.save()


def _reply(blueprint: Blueprint, answer: ProxyResponse, reading: Reading) -> str:
    """What an answer says to people. Raises NoAnswerError without a word, or where the model may not use words of its own."""
    said = spoken(answer) if reading.calls else reading.text
    if not said or blueprint.answer is not None:
        raise NoAnswerError
    return said + (CUT if reading.was_cut else "")


def _with_tools(known: Known, allowed: list[ToolDefinition] | None) -> Known:
    return Known(known.context, known.memories, tools_away=allowed is None)


def _request(dialogue: Dialogue, step: Step) -> ModelRequest:
    blueprint = dialogue.blueprint
    final = step.final or step.choices is not None
    native = blueprint.tool_mode == "native" and bool(dialogue.tools) and not final
    return ModelRequest(
        model=blueprint.model,
        messages=dialogue.messages(final=final),
        max_tokens=blueprint.limits.answer_tokens,
        tools=dialogue.specs() if native else (),
        tool_choice=(blueprint.first_step if step.number == 0 else "auto") if native else None,
        schema=step.choices.schema() if step.choices is not None else None,
        temperature=blueprint.temperature,
    )


def _remark(dialogue: Dialogue, answer: ProxyResponse, reading: Reading) -> None:
    """Tells the model why its answer was of no use."""
    if answer.content.strip():
        dialogue.turns.append(assistant_message(clean(answer.content)))
    dialogue.turns.append(note_message(WAS_CUT if reading.was_cut else WAS_EMPTY))


def _add_results(
    dialogue: Dialogue, answer: ProxyResponse, reading: Reading, outcomes: Sequence[CallOutcome]
) -> None:
    """Adds the model's turn and exactly one result per call, in the order of the calls."""
    if not reading.native:
        dialogue.turns.append(assistant_message(clean(answer.content)))
        dialogue.turns.append(
            results_message([(outcome.source, outcome.text) for outcome in outcomes])
        )
        return
    calls = [
        _as_sent(place, call, given)
        for place, (call, given) in enumerate(
            zip(reading.calls, answer.tool_calls or [], strict=False)
        )
    ]
    if len({call["id"] for call in calls}) < len(calls):
        calls = [{**call, "id": f"call_{place}"} for place, call in enumerate(calls)]
    dialogue.turns.append(assistant_message(clean(answer.content), calls))
    for call, outcome in zip(calls, outcomes, strict=True):
        dialogue.turns.append(tool_message(call["id"], outcome.source, outcome.text))


def _as_sent(place: int, call: WantedCall, given: ToolCall) -> dict[str, Any]:
    """A native call as it stands in the next prompt; arguments that are no JSON object (none, `null`) would be refused there."""
    function = {
        "name": given["function"]["name"],
        "arguments": given["function"]["arguments"] if call.args else NO_ARGUMENTS,
    }
    return {"id": given["id"] or f"call_{place}", "type": "function", "function": function}
