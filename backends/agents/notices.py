"""Notices about runs, published on NATS."""

from __future__ import annotations

from backends.nats.publisher import NatsPublisher
from contracts.agents.notices import AgentNotice


class NatsAgentNotices:
    """Implements AgentNotices; without NATS it does nothing."""

    def __init__(self, publisher: NatsPublisher) -> None:
        self._publisher = publisher

    def publish(self, notice: AgentNotice) -> None:
        """Queues one notice. Never blocks and never raises."""
        self._publisher.publish(notice.subject, notice.model_dump_json().encode())
