"""Usage events of ended runs, published on NATS for the usage engine."""

from __future__ import annotations

import orjson

from backends.nats.publisher import NatsPublisher
from contracts.agents.usage import AgentUsageEvent

AGENT_USAGE_SUBJECT = "usage.agent"


class NatsAgentUsage:
    """Implements AgentUsage: one `usage.agent` message per ended run."""

    def __init__(self, publisher: NatsPublisher) -> None:
        self._publisher = publisher

    def publish(self, event: AgentUsageEvent) -> None:
        """Queues one event. Never blocks and never raises."""
        self._publisher.publish(AGENT_USAGE_SUBJECT, orjson.dumps(event.message()))
