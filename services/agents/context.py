"""From a channel's messages to the question of a run and its context. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from contracts.agents.invocations import AgentInvocation
from contracts.memory.api import Item
from contracts.workspace.messaging_service import ChannelMessage, sender_type
from services.agents.texts import clean, cut_to_tokens, tokens_of

OVERHEAD_TOKENS = 12
"""Tokens of a message's sender and time."""


@dataclass(frozen=True)
class Question:
    """The question and its author. `message_id` is None when the service knows no ids."""

    sender_id: str
    text: str
    created_at: str | None = None
    message_id: str | None = None


@dataclass(frozen=True)
class Context:
    """What prompts are made from, fixed when the run starts: the question, the messages before it,
    oldest first, and what memory recalled for it.
    """

    question: Question
    earlier: tuple[ChannelMessage, ...] = ()
    memories: tuple[Item, ...] = ()


def newest_human(
    messages: Sequence[ChannelMessage], until: datetime | None = None
) -> ChannelMessage | None:
    """Returns the newest message of a person. Messages before `until` go first: later ones have
    their own runs.
    """
    written = [message for message in reversed(messages) if message.sender_type == "human"]
    there = [message for message in written if until is None or message.created_at <= until]
    return next(iter(there or written), None)


def trigger_of(message: ChannelMessage) -> str:
    """Returns the id of a triggering message: its own, else a digest of sender, time and text."""
    if message.id is not None:
        return message.id
    parts = f"{message.sender_id}\n{message.created_at.isoformat()}\n{message.text}"
    return f"sha256:{hashlib.sha256(parts.encode('utf-8', 'replace')).hexdigest()}"


def knows_ids(messages: Sequence[ChannelMessage]) -> bool:
    """Whether the messaging service gives messages ids."""
    return any(message.id is not None for message in messages)


def find_trigger(messages: Sequence[ChannelMessage], trigger_id: str) -> ChannelMessage | None:
    """Returns the message with this id, its own or Matrix's."""
    for message in reversed(messages):
        if trigger_id in (trigger_of(message), message.matrix_event_id):
            return message
    return None


def named_trigger(messages: Sequence[ChannelMessage], event_id: str) -> str | None:
    """Returns the id of the message with Matrix's `event_id`, so that both names lead to one run.

    When no message has a Matrix id, the newest message of a person is meant; None when there is
    none. With a service without ids, `event_id` itself is returned.
    """
    if not knows_ids(messages) or any(message.matrix_event_id for message in messages):
        found = find_trigger(messages, event_id)
        return trigger_of(found) if found is not None else event_id
    newest = newest_human(messages)
    return trigger_of(newest) if newest is not None else None


def channel_context(messages: Sequence[ChannelMessage], trigger: ChannelMessage) -> Context:
    """Returns the question and the earlier messages; later ones belong to later runs."""
    place = max(index for index, message in enumerate(messages) if message is trigger)
    question = Question(
        trigger.sender_id, clean(trigger.text), trigger.created_at.isoformat(), trigger.id
    )
    return Context(question, tuple(messages[:place]))


def direct_context(invocation: AgentInvocation, messages: Sequence[ChannelMessage]) -> Context:
    """Returns the question of an invocation with a text of its own."""
    return Context(Question("caller", clean(invocation.payload.text or "")), tuple(messages))


def is_from_agent(message: ChannelMessage) -> bool:
    """Whether an agent wrote it, by the service's `sender_type` or by the sender's id."""
    return message.sender_type == "agent" or sender_type(message.sender_id) == "agent"


def window(messages: Sequence[ChannelMessage], tokens: int) -> list[ChannelMessage]:
    """Returns the newest messages within about `tokens`, oldest first; the oldest may be cut."""
    kept: list[ChannelMessage] = []
    left = tokens
    for message in reversed(messages):
        cost = tokens_of(message.text) + OVERHEAD_TOKENS
        if cost > left:
            if left > 4 * OVERHEAD_TOKENS:
                kept.append(
                    message.model_copy(
                        update={"text": cut_to_tokens(message.text, left - OVERHEAD_TOKENS)}
                    )
                )
            break
        kept.append(message)
        left -= cost
    return kept[::-1]
