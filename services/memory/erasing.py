"""Erases whole microDAOs, agents and channels, with a receipt."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

from contracts.memory.administration import EraseReceipt, EraseRequest
from contracts.memory.background import ErasureStore, RowErasure
from contracts.memory.ports import Area
from services.memory.knowledge_base import SHARED, KnowledgeBase

KEPT = {
    "usage": "the ledger of calls and costs, which bills refer to: ids and counts, no contents",
    "audit": "who did what, for those who supervise: ids, no contents",
    "logs": "event logs on disk: ids, no contents, until newer files replace them",
    "receipts": "the receipts of erasures: ids and counts",
    "grants": "principals and settings that name these ids: operators write and remove them",
    "running": "calls of tools and models that run at this moment: repeat the erasure after them",
    "queues": "messages in NATS: at most 25 hours until they are taken, refused ones for "
    "`keep_parked_days`",
    "caches": "answers that callers asked to cache, in the memory of replicas: for their `ttl_s`, "
    "at most a day, or until the next reload",
    "copies": "backups, exports, and what other services store",
}
"""What an erasure does not reach, by class, with the reason."""
OF_AGENTS = ("memories", "events", "summaries", "chunks")
"""Classes that are counted agent by agent: 0 where there is no agent."""


@dataclass(frozen=True)
class Erasing:
    """The use case behind `POST /erase`."""

    rows: RowErasure
    store: ErasureStore
    knowledge: KnowledgeBase

    async def erase(self, request: EraseRequest) -> EraseReceipt:
        """Removes a microDAO with its knowledge base, an agent or a channel from every wing.

        Many transactions of a bounded size do it. After a failure the same request continues where
        it stopped; what is written meanwhile goes when it is repeated. A channel's UUID in another
        spelling erases what is stored under that one and under the canonical one.
        """
        microdao_id, agent_id = request.microdao_id, request.agent_id
        erased, spellings = Counter(dict.fromkeys(OF_AGENTS, 0)), {request.channel_id}
        with suppress(ValueError):
            spellings.add(str(UUID(request.channel_id or "")))
        for channel_id in spellings:
            spelled = request.model_copy(update={"channel_id": channel_id})
            erased.update(await self.rows.erase(spelled))
            agents = await self.store.agents(microdao_id) if agent_id is None else [agent_id]
            for agent in agents:
                erased.update(await self.store.erase(Area(microdao_id, agent), channel_id))
        if agent_id is None and request.channel_id is None:
            erased.update(await self.knowledge.forget(microdao_id))
            await self.store.erase(Area(microdao_id, SHARED), None)
        receipt = await self.store.receipt(request, erased)
        return receipt.model_copy(update={"kept": KEPT})
