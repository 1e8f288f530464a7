"""Publishes `usage.tool` messages on NATS."""

from __future__ import annotations

import orjson

from backends.nats.publisher import NatsPublisher
from contracts.tools.ledger import ToolUsageEvent

TOOL_USAGE_SUBJECT = "usage.tool"


class NatsToolUsage:
    """Implements ToolUsage: one `usage.tool` message per ended call."""

    def __init__(self, publisher: NatsPublisher) -> None:
        self._publisher = publisher

    def publish(self, event: ToolUsageEvent) -> None:
        """Queues one event. Never blocks and never raises."""
        self._publisher.publish(TOOL_USAGE_SUBJECT, orjson.dumps(event.message()))
