"""What a query of the memory did, as one trace at a real collector."""

from tests.support.otlp import tracing_to

ARMS = {"memory.embed", "memory.dense", "memory.lexical", "memory.recent"}


async def test_a_query_shows_its_arms(collector, monkeypatch, memory):
    await memory.store("Ключ лежить під килимком")
    with tracing_to(collector, monkeypatch):
        assert await memory.contents("Де ключ?") == ["Ключ лежить під килимком"]
    query = collector.one("memory.query")
    assert query.parent == collector.one("POST /query").span_id
    steps = collector.children(query)
    assert {span.name for span in steps} == ARMS | {"memory.structure", "memory.read"}
    assert len(steps) == 6
    assert not any(span.failed for span in collector.spans)
    sent = b"".join(body for _, _, body in collector.requests)
    assert [text for text in ("ключ", "Ключ", "agent:sofia") if text.encode() in sent] == []


async def test_an_arm_that_fails_is_seen_and_the_query_is_not_failed(
    collector, monkeypatch, memory, embedder
):
    await memory.store("Ключ лежить під килимком")
    embedder.go_away()
    with tracing_to(collector, monkeypatch):
        assert (await memory.query("Де ключ?"))["degraded"] == ["dense"]
    assert {span.name: span.error for span in collector.spans if span.failed} == {
        "memory.embed": "engine_unavailable"
    }


async def test_a_query_that_is_late_is_named_by_our_own_error(
    collector, monkeypatch, memory, embedder
):
    embedder.delay_s = 30
    with tracing_to(collector, monkeypatch):
        tenant = {"agent_id": "agent:sofia", "microdao_id": "microdao:7"}
        late = await memory.post("/query", {**tenant, "query": "Де ключ?", "timeout_s": 0.3})
        assert late.status_code == 504
    assert collector.one("memory.query").error == "deadline_exceeded"
    assert collector.one("POST /query").error == "deadline_exceeded"


async def test_a_store_and_its_embedding_in_the_background_are_two_traces(
    collector, monkeypatch, memory
):
    with tracing_to(collector, monkeypatch):
        await memory.store("Ключ лежить під килимком")
    store, ingest = collector.one("memory.store"), collector.one("memory.ingest")
    assert store.parent == collector.one("POST /store").span_id
    assert ingest.parent == ""
    assert [span.name for span in collector.children(ingest)] == ["memory.embed"]
