"""Invocations: the request that an agent answers a message, and what comes of it."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    StringConstraints,
    model_validator,
)

from contracts.identity import Identifier
from contracts.shapes import Frozen
from contracts.values import storable

MAX_QUESTION_CHARS = 200_000
MAX_PROMPT_ADDITION = 8_000

Entrypoint = Literal["channel_message", "direct", "cron"]
RunStatus = Literal[
    "queued", "running", "answered", "failed", "ignored", "undelivered", "indeterminate"
]


class InvocationPayload(Frozen):
    """What happened. Unknown keys are ignored.

    `text` is the question of `direct` and `cron`. `rewrite_prompt` is appended to the instructions.
    """

    channel_id: Identifier | None = None
    message_id: Identifier | None = None
    matrix_event_id: Identifier | None = None
    microdao_id: Identifier | None = None
    rewrite_prompt: (
        Annotated[str, StringConstraints(max_length=MAX_PROMPT_ADDITION), AfterValidator(storable)]
        | None
    ) = None
    text: (
        Annotated[str, StringConstraints(max_length=MAX_QUESTION_CHARS), AfterValidator(storable)]
        | None
    ) = None


class AgentInvocation(Frozen):
    """Body of `POST /invocations` and of `router.invoke.agent`. Unknown keys are ignored."""

    agent_id: Identifier
    entrypoint: Entrypoint
    payload: InvocationPayload

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> AgentInvocation:
        if self.entrypoint == "channel_message" and self.payload.channel_id is None:
            raise ValueError("payload.channel_id: required for `channel_message`")
        if self.entrypoint != "channel_message" and not (self.payload.text or "").strip():
            raise ValueError(f"payload.text: required for `{self.entrypoint}`")
        return self


class InvocationAnswer(BaseModel):
    """The run of an invocation, readable under `microdao_id`. `duplicate`: the message had a run
    already, and this is it.
    """

    run_id: UUID
    microdao_id: str
    status: RunStatus
    reply: str | None = None
    duplicate: bool | None = None
