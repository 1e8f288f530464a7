"""Wire shapes of `GET /stats`: what is stored, by agent, tier and kind."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Protocol

from pydantic import BaseModel, StringConstraints

from contracts.identity import Identifier, Page, PageQuery
from contracts.memory.fields import Kind, Tier


class StatsFilter(PageQuery):
    """Query string of `GET /stats`: an agent, a microDAO, or all; a page has `limit` agents.

    The knowledge bases that the named ones search are counted, too.
    """

    microdao_id: Identifier | None = None
    agent_id: Identifier | None = None
    cursor: Annotated[str, StringConstraints(max_length=4_096)] | None = None


class TierStats(BaseModel):
    """Counts of one kind in one tier.

    `count` is of memories; in the short-term tier of events, in the long-term tier of documents.
    `chunks` are their searchable texts of `text_bytes` together (UTF-8); events have none. `first`
    and `latest` are times of what happened, of documents the times of their indexing. The last
    three count what was stored (events: recorded, documents: indexed) within that time.
    """

    tier: Tier
    kind: Kind
    count: int
    chunks: int
    text_bytes: int
    first: datetime
    latest: datetime
    last_24h: int
    last_7d: int
    last_30d: int


class AgentStats(BaseModel):
    """What one agent stores in one microDAO.

    Without `agent_id` it is the microDAO's knowledge base, without both the one that all share.
    `waiting` chunks have no embedding yet; the oldest of them was stored `oldest_waiting_s` ago.
    """

    microdao_id: str | None = None
    agent_id: str | None = None
    waiting: int
    oldest_waiting_s: float | None = None
    tiers: list[TierStats]


class StatsReader(Protocol):
    """Counts what is stored."""

    async def page(self, wanted: StatsFilter) -> Page[AgentStats]:
        """Returns counts by agent, in the order of microDAO and agent.

        Raises:
            InvalidRequest: the cursor is not one of an earlier page.
            DeadlineExceeded: counting took too long.
        """
