"""Erases whole microDAOs, agents and channels, with a receipt."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from contracts.identity import Tenant
from contracts.memory.administration import EraseReceipt, EraseRequest
from contracts.memory.background import ErasureStore
from contracts.memory.ports import Area
from services.memory.knowledge_base import KnowledgeBase


@dataclass(frozen=True)
class Erasing:
    """The use case behind `POST /erase`."""

    store: ErasureStore
    knowledge: KnowledgeBase

    async def erase(self, request: EraseRequest) -> EraseReceipt:
        """Removes a microDAO with its knowledge base, an agent, or a channel from every tier.

        Each agent is removed in its own transaction. After a failure the same request continues
        where it stopped.
        """
        erased: Counter[str] = Counter()
        microdao_id, agent_id = request.microdao_id, request.agent_id
        if agent_id is None:
            for agent in await self.store.agents(microdao_id):
                erased.update(await self.store.erase_agent(Area(microdao_id, agent)))
            erased.update(await self.knowledge.forget(microdao_id))
        elif request.channel_id is None:
            erased.update(await self.store.erase_agent(Area(microdao_id, agent_id)))
        else:
            tenant = Tenant(microdao_id=microdao_id, agent_id=agent_id)
            erased.update(await self.store.erase_channel(tenant, request.channel_id))
        return await self.store.receipt(request, erased)
