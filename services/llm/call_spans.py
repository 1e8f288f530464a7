"""The spans of one call of a model, after OpenTelemetry's semantic conventions for generative AI.

A call is one span; each attempt at a target, a retry as well as a fail-over, is one below it. Only
the call has token counts, so that a sum over spans counts each token once.

Where the operator wants contents, the call shows the newest messages and the answer, as texts that
are cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

import orjson

from common import tracing
from contracts.llm.messages import ChatMessage
from contracts.llm.requests import CallMetadata
from contracts.llm.routing import Target
from contracts.llm.usage import OUTCOME_OK, UsageRecord

MAX_MESSAGES, MAX_CHARS = 8, 1_024
"""What is shown of a prompt, and of each of its messages; of an answer as much as of a prompt."""
PROVIDER, REQUESTED = "gen_ai.provider.name", "gen_ai.request.model"


class CallSpans:
    """The span of a call from its start, and that of the running attempt.

    `operation` is `chat` or `embeddings`, `model` the logical model. `trace_id` is that of the
    call's trace, for its record.
    """

    def __init__(self, operation: str, model: str, metadata: CallMetadata) -> None:
        self._call = tracing.start(f"{operation} {model}", tracing.SpanKind.CLIENT)
        self._attempt = self._call
        self._answer: str | None = None
        self.trace_id = tracing.trace_id_of(self._call)
        if self._call.is_recording():
            self._call.set_attributes(
                {
                    "gen_ai.operation.name": operation,
                    REQUESTED: model,
                    "gen_ai.agent.id": metadata.agent_id,
                    "daarion.microdao_id": metadata.microdao_id,
                }
            )
            if metadata.channel_id is not None:
                self._call.set_attribute("gen_ai.conversation.id", metadata.channel_id)

    def asked(self, messages: Sequence[ChatMessage]) -> None:
        """Shows the prompt, if contents are wanted."""
        if tracing.shows_contents() and self._call.is_recording():
            self._answer = ""
            newest = messages[-MAX_MESSAGES:]
            said = [(str(each["role"]), str(each.get("content") or "")) for each in newest]
            self._show("gen_ai.input.messages", said, MAX_CHARS)

    def answered(self, text: str | None) -> None:
        """Takes an answer, or a part of it."""
        if text and self._answer is not None and len(self._answer) < MAX_MESSAGES * MAX_CHARS:
            self._answer += text

    def within(self) -> AbstractContextManager[tracing.Span]:
        """Makes the running attempt's span the current one, before the first that of the call."""
        return tracing.entered(self._attempt)

    def attempt(self, target: Target) -> None:
        """Begins an attempt."""
        if self._call.is_recording():
            self._attempt = tracing.start(
                f"attempt {target.provider}/{target.name}",
                tracing.SpanKind.CLIENT,
                {PROVIDER: target.provider, REQUESTED: target.name},
                parent=tracing.within(self._call),
            )

    def skipped(self, target: Target, outcome: str) -> None:
        """Notes a target that was not called."""
        self._call.add_event(
            "skipped", {PROVIDER: target.provider, REQUESTED: target.name, "error.type": outcome}
        )

    def attempt_ended(self, outcome: str) -> None:
        """Ends the running attempt."""
        if self._attempt is not self._call:
            _end(self._attempt, outcome)
            self._attempt = self._call

    def ended(self, record: UsageRecord, finish_reason: str | None = None) -> None:
        """Ends the call."""
        if not self._call.is_recording():
            return
        if record.provider:
            self._call.set_attributes(
                {
                    PROVIDER: record.provider,
                    "gen_ai.response.model": record.physical_model,
                    "gen_ai.usage.input_tokens": record.prompt_tokens,
                    "gen_ai.usage.output_tokens": record.completion_tokens,
                }
            )
        if finish_reason is not None:
            self._call.set_attribute("gen_ai.response.finish_reasons", [finish_reason])
        if self._answer:
            said = [("assistant", self._answer)]
            self._show("gen_ai.output.messages", said, MAX_MESSAGES * MAX_CHARS)
        _end(self._call, record.outcome)

    def _show(self, attribute: str, said: Iterable[tuple[str, str]], most: int) -> None:
        shown = [
            {
                "role": role,
                "parts": [
                    {"type": "text", "content": text[:most].encode("utf-8", "replace").decode()}
                ],
            }
            for role, text in said
        ]
        self._call.set_attribute(attribute, orjson.dumps(shown).decode())


def _end(span: tracing.Span, outcome: str) -> None:
    if outcome != OUTCOME_OK:
        tracing.fail(span, outcome)
    span.end()
