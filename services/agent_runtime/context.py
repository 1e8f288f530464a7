"""From a channel's newest messages to what a run answers and what it may know. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from contracts.agents import AgentInvocation
from contracts.messaging import ChannelMessage, sender_type
from services.agent_runtime.texts import clean, cut_to_tokens, tokens_of

OVERHEAD_TOKENS = 12
"""What a message costs beside its text: its sender and time."""


@dataclass(frozen=True)
class Question:
    """What is answered: who wrote it and the text. `message_id` where the service knows ids."""

    sender_id: str
    text: str
    created_at: str | None = None
    message_id: str | None = None


@dataclass(frozen=True)
class Context:
    """The question and the messages before it, oldest first."""

    question: Question
    earlier: tuple[ChannelMessage, ...] = ()


def given_trigger(invocation: AgentInvocation) -> str | None:
    """Returns the id that the caller gave the triggering message, if any."""
    return invocation.payload.message_id or invocation.payload.matrix_event_id


def newest_human(messages: Sequence[ChannelMessage]) -> ChannelMessage | None:
    """Returns the newest message that no agent wrote."""
    return next((message for message in reversed(messages) if message.sender_type == "human"), None)


def trigger_of(message: ChannelMessage) -> str:
    """Returns the id of a triggering message: its own, else one made of sender, time and text."""
    if message.id is not None:
        return message.id
    parts = f"{message.sender_id}\n{message.created_at.isoformat()}\n{message.text}"
    return f"sha256:{hashlib.sha256(parts.encode('utf-8', 'replace')).hexdigest()}"


def find_trigger(messages: Sequence[ChannelMessage], trigger_id: str) -> ChannelMessage | None:
    """Returns the triggering message among `messages`, or the newest human one from a service that shows no ids."""
    for message in reversed(messages):
        if trigger_of(message) == trigger_id:
            return message
    if any(message.id is not None for message in messages):
        return None
    return newest_human(messages)


def channel_context(messages: Sequence[ChannelMessage], trigger: ChannelMessage) -> Context:
    """Returns the question and what was said before it; what came later belongs to later runs."""
    place = max(index for index, message in enumerate(messages) if message is trigger)
    question = Question(trigger.sender_id, clean(trigger.text), trigger.created_at.isoformat(), trigger.id)
    return Context(question, tuple(messages[:place]))


def direct_context(invocation: AgentInvocation, messages: Sequence[ChannelMessage]) -> Context:
    """Returns the question of an invocation that carries its own text."""
    return Context(Question("caller", clean(invocation.payload.text or "")), tuple(messages))


def is_from_agent(message: ChannelMessage) -> bool:
    """Whether an agent wrote it, by what the service says and by the id."""
    return message.sender_type == "agent" or sender_type(message.sender_id) == "agent"


def window(messages: Sequence[ChannelMessage], tokens: int) -> list[ChannelMessage]:
    """Returns the newest messages that fit into about so many tokens, oldest first; the oldest of them may be cut."""
    kept: list[ChannelMessage] = []
    left = tokens
    for message in reversed(messages):
        cost = tokens_of(message.text) + OVERHEAD_TOKENS
        if cost > left:
            if left > 4 * OVERHEAD_TOKENS:
                kept.append(message.model_copy(update={"text": cut_to_tokens(message.text, left - OVERHEAD_TOKENS)}))
            break
        kept.append(message)
        left -= cost
    return kept[::-1]
