"""A call whose usage cannot be recorded is refused before its model is called."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from backends.llm.usage_spool import UsageSpool
from contracts.errors import Overloaded
from contracts.llm.openai_embeddings import EmbeddingsRequest
from contracts.llm.requests import CallMetadata
from services.llm.embeddings import Embeddings, embedding_target
from services.llm.limits.limiter import LeasedLimiter
from tests.support.events import RecordedEvents
from tests.support.llm.limits import InProcessAuthority, requests_per_minute
from tests.support.llm.prices import NoPrices
from tests.support.llm.proxy import CALLER, client_of, proxy_over
from tests.support.llm.spool import FILE, Ledger, begin_all, drained, opened
from tests.support.llm.upstream import ScriptedUpstream
from tests.support.memory.hashing_embedder import HashingEmbedder

REFUSALS = 10
LIMIT = 3
MESSAGES = [{"role": "user", "content": "раз два"}]


@pytest.fixture
async def spool(tmp_path: Path, events: RecordedEvents) -> AsyncIterator[UsageSpool]:
    kept = await opened(tmp_path, events, max_bytes=FILE)
    yield kept
    await kept.close()


async def free(spool: UsageSpool, begun: list) -> None:
    for record, ticket in begun:
        spool.record(record, ticket)
    await drained(spool, Ledger())


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/proxy", "plain"),
        ("/proxy", "guarded"),
        ("/stream", "plain"),
        ("/v1/chat/completions", "plain"),
    ],
)
async def test_a_call_is_refused_while_the_spool_is_full_and_served_afterwards(
    spool: UsageSpool, path: str, model: str
) -> None:
    body = {"model": model, "messages": MESSAGES, "metadata": CALLER}
    async with (
        ScriptedUpstream() as upstream,
        proxy_over(upstream.base_url, limit=LIMIT, source=InProcessAuthority()) as (
            proxy,
            recorder,
        ),
        client_of(replace(proxy, usage=spool), recorder) as client,
    ):
        begun = begin_all(spool)
        for _ in range(REFUSALS):  # more than the limit: none of them counts
            response = await client.post(path, json=body)
            assert response.status_code == 503
            assert '"overloaded"' in response.text
        assert not upstream.requests
        assert spool.pending == 0
        await free(spool, begun)
        response = await client.post(path, json=body)
        assert response.status_code == 200, response.text
        assert len(upstream.requests) == 1
        assert spool.pending == 1
    outcomes = [event["outcome"] for event in recorder.events if event["event"] == "llm.call"]
    assert outcomes == [*["overloaded"] * REFUSALS, "ok"]


async def test_vectors_are_refused_while_the_spool_is_full(
    spool: UsageSpool, events: RecordedEvents
) -> None:
    class Asked(HashingEmbedder):
        calls = 0

        async def embed(self, *given, **named):
            self.calls += 1
            return await super().embed(*given, **named)

    embedder = Asked()
    limiter = LeasedLimiter(InProcessAuthority(), requests_per_minute(LIMIT), RecordedEvents())
    use_case = Embeddings(
        "e5", embedding_target("local", "e5"), embedder, limiter, spool, events, NoPrices
    )
    asked = (EmbeddingsRequest(model="e5", input="x"), CallMetadata(**CALLER), "r-1")
    begun = begin_all(spool)
    for _ in range(REFUSALS):
        with pytest.raises(Overloaded):
            await use_case.create(*asked, credential="anonymous")
    assert embedder.calls == 0
    await free(spool, begun)
    await use_case.create(*asked, credential="anonymous")
    assert (embedder.calls, spool.pending) == (1, 1)
    await limiter.close()
