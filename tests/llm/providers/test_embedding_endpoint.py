"""The Embedder port over an OpenAI-compatible endpoint, against a real HTTP server."""

import asyncio
import math
import time
from contextlib import asynccontextmanager

import pytest

from configs.engines.embedder import RemoteEmbedderSettings
from contracts.deadline import Deadline
from contracts.errors import (
    ConfigurationError,
    InvalidRequest,
    Overloaded,
    UpstreamAuthFailed,
    UpstreamInvalidResponse,
    UpstreamMisconfigured,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from contracts.llm.embeddings import MAX_TEXTS_PER_CALL
from providers import embeddings as embedding
from providers.embeddings import OpenAIEmbedder
from tests.support.memory.embeddings_server import DIMENSION, EmbeddingsServer, vector_of

KEY = "sk-secret-0123456789"


@asynccontextmanager
async def endpoint(**settings):
    async with EmbeddingsServer() as server:
        values = {
            "type": "openai_compatible",
            "base_url": server.url,
            "model": "text-embedding-x",
            "served_name": "x",
            "version": "x@1",
            "dimension": DIMENSION,
            "api_key_env": "EMBEDDINGS_KEY",
            "prefixes": {"query": "q: "},
            "timeout_s": 2,
            **settings,
        }
        embedder = OpenAIEmbedder(
            RemoteEmbedderSettings.model_validate(values), {"EMBEDDINGS_KEY": KEY}.get
        )
        try:
            yield server, embedder
        finally:
            await embedder.close()


async def embed(embedder, texts, kind="passage", seconds=5.0):
    return await embedder.embed(texts, kind, tenant="t", deadline=Deadline.after(seconds))


def unit(text):
    values = vector_of(text)
    length = math.sqrt(sum(value * value for value in values))
    return pytest.approx([value / length for value in values], abs=1e-6)


@pytest.mark.parametrize("form", ["ok", "base64", "reversed"])
async def test_vectors_come_back_in_order_and_of_unit_length(form):
    async with endpoint() as (server, embedder):
        server.answer = form
        batch = await embed(embedder, ["один", "два слова", "three"])
        assert [batch.row(index) for index in range(3)] == [
            unit("один"),
            unit("два слова"),
            unit("three"),
        ]
        assert (batch.model_version, batch.tokens) == ("x@1", 4)
        assert server.headers["Authorization"] == f"Bearer {KEY}"
        assert server.requests[-1]["model"] == "text-embedding-x"
        assert "dimensions" not in server.requests[-1]


async def test_questions_have_their_prefix_and_passages_theirs():
    async with endpoint() as (server, embedder):
        await embed(embedder, ["де ключ"], "query")
        await embed(embedder, ["ключ тут"])
        assert [request["input"] for request in server.requests] == [["q: де ключ"], ["ключ тут"]]


async def test_arrays_of_tokens_are_the_endpoints_own_and_go_as_they_are():
    async with endpoint(prefixes={}) as (server, embedder):
        batch = await embed(embedder, [[15339, 1917], [7]])
        assert [request["input"] for request in server.requests] == [[[15339, 1917], [7]]]
        assert (len(batch), batch.tokens) == (2, 3)


async def test_arrays_of_tokens_cannot_be_given_a_prefix():
    async with endpoint() as (server, embedder):
        with pytest.raises(InvalidRequest, match="send texts"):
            await embed(embedder, [[15339, 1917]], "query")
        assert server.requests == []


async def test_many_texts_go_in_several_requests_of_the_configured_size():
    async with endpoint(
        max_texts_per_request=4, ask_dimensions=True, extra_body={"user": "daarion"}
    ) as (server, embedder):
        batch = await embed(embedder, [f"text {number}" for number in range(10)])
        assert [len(request["input"]) for request in server.requests] == [4, 4, 2]
        assert len(batch) == 10
        assert server.requests[0]["dimensions"] == DIMENSION
        assert server.requests[0]["user"] == "daarion"


@pytest.mark.parametrize("count", [0, MAX_TEXTS_PER_CALL + 1])
async def test_no_text_or_too_many_are_refused(count):
    async with endpoint() as (server, embedder):
        with pytest.raises(InvalidRequest):
            await embed(embedder, ["x"] * count)
        assert server.requests == []


@pytest.mark.parametrize(
    ("answer", "leaf"),
    [
        (401, UpstreamAuthFailed),
        (402, UpstreamAuthFailed),
        (403, UpstreamAuthFailed),
        (404, UpstreamMisconfigured),
        (408, UpstreamTimeout),
        (400, UpstreamRejected),
        (413, UpstreamRejected),
        (429, UpstreamRateLimited),
        (503, UpstreamRateLimited),
        (500, UpstreamUnavailable),
        ("redirect", UpstreamMisconfigured),
        ("short", UpstreamInvalidResponse),
        ("narrow", UpstreamMisconfigured),
        ("zero", UpstreamInvalidResponse),
        ("null", UpstreamInvalidResponse),
        ("no json", UpstreamInvalidResponse),
        ("list", UpstreamInvalidResponse),
        ("cut", UpstreamInvalidResponse),
    ],
)
async def test_each_failure_is_its_leaf_and_leaks_no_secret(answer, leaf):
    async with endpoint() as (server, embedder):
        server.answer = answer
        with pytest.raises(leaf) as failure:
            await embed(embedder, ["text"])
        assert type(failure.value) is leaf
        for secret in ("sk-", "http", "127.0.0.1", server.url):
            assert secret not in failure.value.message
        if leaf is UpstreamRateLimited:
            assert failure.value.retry_after_s == 7
        assert len(server.requests) == 1  # one layer retries, and it is not this one


async def test_an_answer_over_its_bound_is_not_read_to_its_end(monkeypatch):
    monkeypatch.setattr(embedding, "MAX_ANSWER_BYTES", 20)
    async with endpoint() as (_server, embedder):
        with pytest.raises(UpstreamInvalidResponse, match="is over"):
            await embed(embedder, ["text"])


async def test_silence_ends_with_the_deadline():
    async with endpoint() as (server, embedder):
        server.answer = "slow"
        started = time.monotonic()
        with pytest.raises(UpstreamTimeout):
            await embed(embedder, ["text"], seconds=0.3)
        assert time.monotonic() - started < 4.5  # the server would answer after five


async def test_unreachable_endpoint_is_unavailable():
    async with endpoint() as (server, embedder):
        await server._runner.cleanup()
        with pytest.raises(UpstreamUnavailable, match="cannot be reached"):
            await embed(embedder, ["text"])


async def test_ingestion_leaves_room_for_questions():
    async with endpoint(max_concurrent=4) as (server, embedder):
        server.answer = "steady"
        passages = [
            asyncio.create_task(embed(embedder, ["passage"], seconds=60)) for _ in range(12)
        ]
        async with asyncio.timeout(30):
            while server.working < 2:
                await asyncio.sleep(0.01)
        await embed(embedder, ["question"], "query", seconds=60)
        assert (
            sum(not passage.done() for passage in passages) >= 4
        )  # of twelve, two at a time: behind them it would find none
        await asyncio.gather(*passages)
        assert server.most_working == 3  # never more than two passages


async def test_waiting_calls_are_bounded():
    async with endpoint(max_concurrent=2, max_waiting=3) as (server, embedder):
        server.answer = "slow"
        calls = [asyncio.create_task(embed(embedder, ["text"])) for _ in range(8)]
        done, waiting = await asyncio.wait(calls, timeout=1)
        assert len(done) == 4
        assert all(isinstance(call.exception(), Overloaded) for call in done)
        for call in waiting:
            call.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def test_a_missing_key_is_reported_at_start_by_name():
    settings = RemoteEmbedderSettings(
        type="openai_compatible",
        base_url="https://example.org/v1",
        model="m",
        served_name="m",
        version="m@1",
        dimension=8,
        api_key_env="EMBEDDINGS_KEY",
    )
    with pytest.raises(ConfigurationError, match="EMBEDDINGS_KEY"):
        OpenAIEmbedder(settings, {}.get)


def test_this_graphs_own_secret_is_no_key_of_an_endpoint():
    values = {
        "type": "openai_compatible",
        "model": "m",
        "served_name": "m",
        "version": "m@1",
        "dimension": 8,
        "base_url": "https://x/v1",
    }
    with pytest.raises(ValueError, match="DAARION_INTERNAL_SECRET holds a secret of this graph"):
        RemoteEmbedderSettings.model_validate({**values, "api_key_env": "DAARION_INTERNAL_SECRET"})
    settings = RemoteEmbedderSettings.model_validate({**values, "api_key_env": "EMBEDDINGS_KEY"})
    with pytest.raises(ConfigurationError, match="EMBEDDINGS_KEY holds a secret of this graph"):
        OpenAIEmbedder(settings, {"EMBEDDINGS_KEY": "ours", "DAARION_INTERNAL_SECRET": "ours"}.get)


@pytest.mark.parametrize("url", ["ftp://x/v1", "http://user:pw@x/v1", "https://x/v1?key=1", "x"])
def test_urls_with_secrets_or_without_scheme_are_refused(url):
    with pytest.raises(ValueError, match="base_url"):
        RemoteEmbedderSettings(
            type="openai_compatible",
            base_url=url,
            model="m",
            served_name="m",
            version="m@1",
            dimension=8,
        )


def test_a_key_over_plain_http_to_another_machine_is_the_operators_choice():
    values = {
        "type": "openai_compatible",
        "model": "m",
        "served_name": "m",
        "version": "m@1",
        "dimension": 8,
        "base_url": "http://x/v1",
    }
    assert RemoteEmbedderSettings.model_validate(values).api_key_env is None
    with pytest.raises(
        ValueError,
        match=r"the key in A_KEY would go over plain http:// to another machine: "
        r"use https://, or .* `insecure",
    ):
        RemoteEmbedderSettings.model_validate({**values, "api_key_env": "A_KEY"})
    for more in (
        {"insecure": True},
        {"base_url": "http://127.0.0.1:1/v1"},
        {"base_url": "https://x/v1"},
    ):
        RemoteEmbedderSettings.model_validate({**values, "api_key_env": "A_KEY", **more})
