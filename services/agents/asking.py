"""One question to the model, and its recorded answer."""

from __future__ import annotations

from dataclasses import dataclass

from contracts.errors import ContextLengthExceeded
from contracts.llm.answers import ProxyResponse
from contracts.llm.ports import ChatModel, ModelRequest
from services.agents.choices import Choices
from services.agents.prompt import Dialogue
from services.agents.scope import RunScope
from services.agents.tool_calls import read_answer

SHRINKS = 3
"""How often a prompt that is too long for the model is halved."""


@dataclass(frozen=True)
class ModelTurn:
    """One question to the model: `number` counts from 0, the `last` one offers no tools; with
    `choices` only these may be answered.
    """

    number: int
    last: bool
    choices: Choices | None = None


async def ask(
    model: ChatModel, scope: RunScope, dialogue: Dialogue, turn: ModelTurn
) -> ProxyResponse:
    """Returns the model's answer, recorded; a prompt that is too long is shortened.

    Raises what `ChatModel.chat` raises, and DeadlineExceeded.
    """
    run = scope.run
    for attempt in range(SHRINKS + 1):
        scope.deadline.check()
        try:
            with scope.recorder.step("llm") as record:
                answer = await model.chat(
                    _request(dialogue, turn), run.tenant, run.channel_id, scope.deadline
                )
                record.model, record.provider = answer.model_resolved, answer.provider
                record.prompt_tokens = answer.usage.prompt_tokens
                record.completion_tokens = answer.usage.completion_tokens
                record.finish_reason = answer.finish_reason
            break
        except ContextLengthExceeded:
            if attempt == SHRINKS:
                raise
            dialogue.shrink()
    reading = read_answer(answer)
    is_reply = turn.last or turn.choices is not None or (bool(reading.text) and not reading.calls)
    scope.recorder.record_answer(answer, record.duration_ms, is_reply=is_reply)
    return answer


def _request(dialogue: Dialogue, turn: ModelTurn) -> ModelRequest:
    blueprint = dialogue.blueprint
    last = turn.last or turn.choices is not None
    native = blueprint.tool_mode == "native" and bool(dialogue.tools) and not last
    return ModelRequest(
        model=blueprint.model,
        messages=dialogue.messages(final=last),
        max_tokens=blueprint.limits.answer_tokens,
        tools=dialogue.specs() if native else (),
        tool_choice=(blueprint.first_step if turn.number == 0 else "auto") if native else None,
        schema=turn.choices.schema() if turn.choices is not None else None,
        temperature=blueprint.temperature,
    )
