"""Notices about new messages, published on NATS: ids and times, never contents."""

from __future__ import annotations

import orjson

from backends.nats.publisher import NatsPublisher
from contracts.workspace.messages import Message

MESSAGE_CREATED_SUBJECT = "messaging.message.created"


class NatsMessageNotices:
    """Implements MessageNotices; without NATS it does nothing."""

    def __init__(self, publisher: NatsPublisher) -> None:
        self._publisher = publisher

    def created(self, microdao_id: str, message: Message) -> None:
        """Queues one notice. Never blocks and never raises."""
        notice = {
            "message_id": message.id,
            "channel_id": message.channel_id,
            "microdao_id": microdao_id,
            "sender_id": message.sender_id,
            "sender_type": message.sender_type,
            "run_id": message.run_id,
            "created_at": message.created_at,
        }
        self._publisher.publish(MESSAGE_CREATED_SUBJECT, orjson.dumps(notice))
