"""From a question to an answer: preparation, then model and tools in turn until there is a text.

The pipeline reads a run and reports to its recorder, which writes down what happened; nothing calls
back into the pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from contracts.agents.blueprints import Blueprint
from contracts.deadline import Deadline
from contracts.errors import ContextLengthExceeded
from contracts.llm.answers import ProxyResponse
from contracts.llm.ports import ModelRequest
from services.agents.choices import Choices, choices_of
from services.agents.journal import answers_of
from services.agents.preparation import Preparation, Prepared
from services.agents.prompt import Dialogue
from services.agents.scope import NoAnswerError, PipelinePorts, RunScope
from services.agents.texts import CUT
from services.agents.tool_calls import Reading, WantedCall, read_answer, spoken
from services.agents.tool_turn import CallOutcome, Toolbox

SHRINKS = 3
"""How often a prompt that is too long for the model is halved."""
LAST_SHARE = 0.25
"""Once less than this share of a run's time remains, the next step is the last."""


class ModelTooSmallError(Exception):
    """The answer comes from a model that the blueprint has to be fitted to."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model


@dataclass(frozen=True)
class Pipeline:
    """Answers runs. Holds no state of its own."""

    ports: PipelinePorts

    async def answer(self, scope: RunScope) -> str:
        """Returns the text of the reply.

        When the answering model turns out to need a smaller blueprint (a fallback, say), the run
        begins anew under the blueprint that is fitted to it. A model that may only choose among a
        tool's results has no words of its own: if the tool returned an empty list, the reply is the
        configured `none` text.

        Raises:
            EmptyQuestionError, NothingToAnswerError: see there.
            NoAnswerError: no text in all steps; or a model that may only choose got no list.
            RunLostError: another replica has taken the run.
            DaarionError: messaging service, model or database failed, or the deadline passed.
        """
        scope.recorder.reset_tool_calls()
        prepared = await Preparation(self.ports).prepare(scope)
        try:
            return await _Conversation(self.ports, prepared).reply()
        except ModelTooSmallError as error:
            # Recorded before anything was done; a fitted blueprint cannot be too large again.
            await scope.recorder.record_refit(replace(prepared.start, model=error.model))
        return await self.answer(scope)


class _Conversation:
    """The steps of one run: question to the model, tool calls, next question."""

    def __init__(self, ports: PipelinePorts, prepared: Prepared) -> None:
        scope, start, tools = prepared.scope, prepared.start, prepared.tools or []
        run, blueprint = scope.run, scope.blueprint
        self._scope = scope
        self._model = ports.model
        self._dialogue = Dialogue(
            blueprint,
            run.nonce,
            start,
            tools,
            run.invocation.payload.rewrite_prompt,
            tools_away=prepared.tools is None,
        )
        self._toolbox = Toolbox(blueprint, run, ports.tools, tools, recorded_tools=start.tools)
        self._recorded = answers_of(run.journal)
        self._tainted = start.tainted

    async def reply(self) -> str:
        """Returns the reply. Raises as `Pipeline.answer`, and ModelTooSmallError."""
        blueprint = self._scope.blueprint
        force_last = False
        choices: Choices | None = None
        for number in range(blueprint.limits.steps):
            # A recorded step is never the last: its tool calls were already decided.
            is_recorded = bool(self._recorded)
            is_last = not is_recorded and (force_last or self._must_end(number))
            answer = await self._next_answer(number, choices, is_last=is_last)
            if choices is not None:
                return choices.reply(answer)
            if _is_too_small(blueprint, answer):
                if number:  # tools were called already: the run cannot begin anew
                    raise NoAnswerError
                raise ModelTooSmallError(answer.model_resolved)
            reading = read_answer(answer)
            if is_last or (reading.text and not reading.calls):
                return _reply(blueprint, answer, reading)
            if not reading.calls:
                self._dialogue.add_remark(answer, reading)
                continue
            calls = self._toolbox.without_optional_arguments(reading.calls)
            force_last = self._toolbox.is_repeat(calls)
            outcomes = await self._call(calls, number, is_recorded=is_recorded)
            self._dialogue.add_results(
                answer, reading, [(outcome.source, outcome.text) for outcome in outcomes]
            )
            choices = choices_of(blueprint.answer, outcomes)
            if choices is not None and not choices.values:
                return choices.settings.none
        raise NoAnswerError

    async def _next_answer(
        self, number: int, choices: Choices | None, *, is_last: bool
    ) -> ProxyResponse:
        """The recorded answer of an earlier attempt, else the model's; the last one gets no tools,
        and with `choices` only these may be answered.
        """
        if self._recorded:
            return self._recorded.pop(0)
        scope, is_final = self._scope, is_last or choices is not None
        answer, duration_ms = await self._ask(number, choices, is_final=is_final)
        reading = read_answer(answer)
        is_reply = is_final or (bool(reading.text) and not reading.calls)
        scope.recorder.record_answer(answer, duration_ms, is_reply=is_reply)
        return answer

    async def _ask(
        self, number: int, choices: Choices | None, *, is_final: bool
    ) -> tuple[ProxyResponse, float]:
        """The model's answer and its milliseconds; a prompt that is too long is shortened.

        Raises what `ChatModel.chat` raises, and DeadlineExceeded.
        """
        scope, run = self._scope, self._scope.run
        for shrinks_left in reversed(range(SHRINKS + 1)):
            scope.deadline.check()
            try:
                with scope.recorder.step("llm") as record:
                    request = self._request(number, choices, is_final=is_final)
                    answer = await self._model.chat(
                        request, run.tenant, run.channel_id, scope.deadline
                    )
                    record.model, record.provider = answer.model_resolved, answer.provider
                    record.prompt_tokens = answer.usage.prompt_tokens
                    record.completion_tokens = answer.usage.completion_tokens
                    record.cost_usd = answer.cost_usd
                    record.finish_reason = answer.finish_reason
                break
            except ContextLengthExceeded:
                if not shrinks_left:
                    raise
                self._dialogue.shrink()
        return answer, record.duration_ms

    def _request(self, number: int, choices: Choices | None, *, is_final: bool) -> ModelRequest:
        blueprint, dialogue = self._scope.blueprint, self._dialogue
        native = blueprint.tool_mode == "native" and bool(dialogue.tools) and not is_final
        return ModelRequest(
            model=blueprint.model,
            messages=dialogue.messages(final=is_final),
            max_tokens=blueprint.limits.answer_tokens,
            tools=dialogue.specs() if native else (),
            tool_choice=(blueprint.first_step if number == 0 else "auto") if native else None,
            schema=choices.schema() if choices is not None else None,
            temperature=blueprint.temperature,
        )

    async def _call(
        self, calls: Sequence[WantedCall], number: int, *, is_recorded: bool
    ) -> list[CallOutcome]:
        """Makes the calls of one step; a change is made only after the run is saved."""
        recorder, toolbox = self._scope.recorder, self._toolbox
        if not is_recorded and any(tool.outside for tool in toolbox.allowed):
            self._tainted = True
        if toolbox.may_change(calls):
            await recorder.ensure_saved()
        for call in calls:
            recorder.show("tool_call", tool_id=call.tool_id[:64] or None)
        with recorder.step("tools") as record:
            outcomes = await toolbox.make(
                calls,
                number,
                self._tools_deadline(),
                tainted=self._tainted,
                recorded=is_recorded,
            )
            record.calls = [outcome.use for outcome in outcomes]
            record.ok = all(use.ok for use in record.calls)
        recorder.record_calls(record.calls)
        self._tainted = True  # the next prompt holds the results
        return outcomes

    def _must_end(self, number: int) -> bool:
        """Whether this step gets no tools, so that the run ends in an answer."""
        run, limits = self._scope.run, self._scope.blueprint.limits
        return (
            number + 1 >= limits.steps
            or (number > 0 and self._toolbox.used >= limits.tool_calls)
            or run.prompt_tokens + run.completion_tokens >= limits.tokens
            or self._scope.is_cost_used_up()
            or self._scope.deadline.remaining() < LAST_SHARE * limits.seconds
        )

    def _tools_deadline(self) -> Deadline:
        """Leaves the model time to read the results and to answer."""
        remaining = self._scope.deadline.remaining()
        reserved = LAST_SHARE * self._scope.blueprint.limits.seconds
        return self._scope.deadline.sooner(max(remaining / 2, remaining - reserved))


def _is_too_small(blueprint: Blueprint, answer: ProxyResponse) -> bool:
    return blueprint.small is not None and answer.model_resolved in blueprint.small.models


def _reply(blueprint: Blueprint, answer: ProxyResponse, reading: Reading) -> str:
    """The text for people. Raises NoAnswerError when there is none, or when the model may not use
    words of its own.
    """
    said = spoken(answer) if reading.calls else reading.text
    if not said or blueprint.answer is not None:
        raise NoAnswerError
    return said + (CUT if reading.was_cut else "")
