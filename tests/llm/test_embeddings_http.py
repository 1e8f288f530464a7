"""`/v1/embeddings` over HTTP: with the official OpenAI client, and with invalid requests."""

import asyncio
import base64
import struct
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal

import httpx
import openai
import pytest

from contracts.errors import EngineUnavailable, Overloaded
from interfaces.http.base.ingress import Ingress
from interfaces.http.base.routing import Router
from interfaces.http.llm.openai import OPENAI_ERRORS, add_embedding_routes
from services.llm.embeddings import Embeddings, embedding_target
from services.llm.limits.limiter import LeasedLimiter
from tests.support.access import access_control
from tests.support.events import RecordedEvents
from tests.support.llm.limits import InProcessAuthority, limits, requests_per_minute
from tests.support.llm.prices import NoPrices
from tests.support.llm.proxy import Recorder
from tests.support.memory.hashing_embedder import HashingEmbedder, vector
from tests.support.uvicorn_server import JSON

MODEL = "multilingual-e5-small"
BODY = {"model": MODEL, "input": "Де ключ?"}


class Asked(HashingEmbedder):
    """Remembers its calls."""

    calls = ()

    async def embed(self, texts, kind, *, tenant, deadline):
        self.calls = (*self.calls, (list(texts), kind, tenant))
        return replace(
            await super().embed(texts, kind, tenant=tenant, deadline=deadline),
            tokens=5 * len(texts),
        )


@asynccontextmanager
async def application(*, limit=None, limits_of=None, secret=None, embedder=None, prices=NoPrices):
    recorder, embedder = Recorder(), embedder or Asked()
    limiter = LeasedLimiter(
        InProcessAuthority(), limits_of or requests_per_minute(limit), RecordedEvents()
    )
    use_case = Embeddings(
        MODEL,
        embedding_target("local", MODEL),
        embedder,
        limiter,
        recorder,
        recorder,
        prices,
    )
    router = Router()
    add_embedding_routes(router, use_case)
    ingress = Ingress(
        router,
        access_control(secret, None),
        recorder,
        max_concurrent=10,
        error_shapes=OPENAI_ERRORS,
    )
    transport = httpx.ASGITransport(ingress)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://localhost", headers=JSON
    ) as client:
        yield client, embedder, recorder


async def test_the_official_client_gets_its_vectors():
    async with application(secret="s3cret") as (http, embedder, recorder):
        client = openai.AsyncOpenAI(
            api_key="s3cret", base_url="http://localhost/v1", http_client=http, max_retries=0
        )
        answer = await client.embeddings.create(model=MODEL, input=["перший", "second"])
        assert [row.index for row in answer.data] == [0, 1]
        assert answer.data[1].embedding == pytest.approx(vector("second"), abs=1e-6)
        assert answer.model == MODEL
        assert answer.usage.prompt_tokens == answer.usage.total_tokens
        assert embedder.calls == (
            (["перший", "second"], "passage", "microdao:unnamed/agent:unnamed"),
        )
        assert recorder.records[-1].outcome == "ok"


async def test_identity_and_kind_of_text_reach_the_embedder():
    async with application() as (client, embedder, recorder):
        headers = {"X-Agent-Id": "agent:sofia", "X-Microdao-Id": "microdao:7"}
        await client.post("/v1/embeddings", json={**BODY, "input_type": "query"}, headers=headers)
        other = {"agent_id": "agent:borys", "microdao_id": "microdao:8"}
        await client.post("/v1/embeddings", json={**BODY, "metadata": other}, headers=headers)
        assert [(kind, tenant) for _, kind, tenant in embedder.calls] == [
            ("query", "microdao:7/agent:sofia"),
            ("passage", "microdao:8/agent:borys"),
        ]
        assert [record.agent_id for record in recorder.records] == ["agent:sofia", "agent:borys"]


@pytest.mark.parametrize(
    ("metadata", "tenant"),
    [
        ({"agent_id": "agent:b"}, "microdao:7/agent:b"),
        ({}, "microdao:7/agent:a"),
        (None, "microdao:7/agent:a"),
    ],
)
async def test_nulls_and_a_part_of_the_identity_are_taken(metadata, tenant):
    async with application() as (client, embedder, _):
        headers = {"X-Agent-Id": "agent:a", "X-Microdao-Id": "microdao:7"}
        nulls = {"encoding_format": None, "dimensions": None, "input_type": None, "user": None}
        response = await client.post(
            "/v1/embeddings", json={**BODY, **nulls, "metadata": metadata}, headers=headers
        )
        assert response.status_code == 200, response.text
        assert len(response.json()["data"][0]["embedding"]) == 384
        assert embedder.calls == ((["Де ключ?"], "passage", tenant),)


@pytest.mark.parametrize(
    ("given", "inputs"), [([15339, 1917], [[15339, 1917]]), ([[0, 5, 2], [7]], [[0, 5, 2], [7]])]
)
async def test_arrays_of_tokens_reach_the_embedder_as_they_are_and_count(given, inputs):
    class Counting(Asked):
        async def embed(self, texts, kind, *, tenant, deadline):
            self.calls = (*self.calls, texts)
            return await HashingEmbedder.embed(
                self, [str(text) for text in texts], kind, tenant=tenant, deadline=deadline
            )

    async with application(embedder=Counting()) as (client, embedder, recorder):
        response = await client.post("/v1/embeddings", json={"model": MODEL, "input": given})
        assert response.status_code == 200, response.text
        assert [row["embedding"] for row in response.json()["data"]] == [
            pytest.approx(vector(str(part)), abs=1e-6) for part in inputs
        ]
        assert embedder.calls == (inputs,)
        assert recorder.records[-1].total_tokens == sum(map(len, inputs))


async def test_base64_is_little_endian_float32():
    async with application() as (client, _, _):
        answer = (
            await client.post(
                "/v1/embeddings", json={**BODY, "encoding_format": "base64", "dimensions": 384}
            )
        ).json()
        packed = base64.b64decode(answer["data"][0]["embedding"])
        assert struct.unpack("<384f", packed) == pytest.approx(vector("Де ключ?"), abs=1e-6)
        assert answer["object"] == "list"


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"model": "text-embedding-3-small"}, 404, "model_not_found"),
        ({"input": ""}, 400, "invalid_request"),
        ({"input": []}, 400, "invalid_request"),
        ({"input": ["a", " "]}, 400, "invalid_request"),
        ({"input": [[]]}, 400, "invalid_request"),
        ({"input": None}, 400, "invalid_request"),
        ({"input": [1, "a"]}, 400, "invalid_request"),
        ({"input": [[1], []]}, 400, "invalid_request"),
        ({"input": [1, -2]}, 400, "invalid_request"),
        ({"input": [[True]]}, 400, "invalid_request"),
        ({"input": [1.5]}, 400, "invalid_request"),
        ({"input": [[[1]]]}, 400, "invalid_request"),
        ({"input": [2**63]}, 400, "invalid_request"),
        ({"input": [1] * 8_193}, 400, "invalid_request"),
        ({"input": [[1]] * 513}, 400, "invalid_request"),
        ({"input": ["x"] * 513}, 400, "invalid_request"),
        ({"input": "x" * 100_001}, 400, "invalid_request"),
        ({"dimensions": 128}, 400, "invalid_request"),
        ({"encoding_format": "hex"}, 400, "invalid_request"),
        ({"input_type": "document"}, 400, "invalid_request"),
        ({"metadata": {"agent_id": "a\x00b", "microdao_id": "m"}}, 400, "invalid_request"),
    ],
)
async def test_bad_requests_are_reported_in_openais_shape(change, status, code):
    async with application() as (client, embedder, _):
        response = await client.post("/v1/embeddings", json={**BODY, **change})
        assert response.status_code == status, response.text
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", code)
        assert error["param"] is None or error["param"].startswith(next(iter(change)))
        assert error["message"]
        assert error["request_id"]
        assert embedder.calls == ()


async def test_an_empty_list_is_named_as_such():
    async with application() as (client, _, _):
        refused = await client.post("/v1/embeddings", json={**BODY, "input": []})
        assert refused.json()["error"]["message"].startswith("input: Value should have at least 1")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"input": "\xff"}',
        b'{"input": "\\ud800", "model": "multilingual-e5-small"}',
    ],
)
async def test_invalid_requests_are_a_400(body):
    async with application() as (client, _, _):
        response = await client.post("/v1/embeddings", content=body)
        assert response.status_code == 400
        assert response.json()["error"]["type"] == "invalid_request_error"


async def test_limits_count_and_a_refused_call_costs_nothing():
    async with application(limit=1) as (client, _, recorder):
        assert (await client.post("/v1/embeddings", json=BODY)).status_code == 200
        refused = await client.post("/v1/embeddings", json=BODY)
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert int(refused.headers["Retry-After"]) >= 1
        assert len(recorder.records) == 1


@pytest.mark.parametrize(
    "error",
    [
        EngineUnavailable("the embedder is away: retry", retry_after_s=5),
        Overloaded("too many texts: retry"),
    ],
)
async def test_embedder_away_is_503_and_accounted_without_tokens(error):
    async with application() as (client, embedder, recorder):
        embedder.away = error
        response = await client.post("/v1/embeddings", json=BODY)
        assert response.status_code == 503
        assert response.json()["error"] | {"request_id": ""} == {
            "message": error.message,
            "type": "server_error",
            "param": None,
            "code": error.type,
            "retryable": True,
            "request_id": "",
        }
        assert (recorder.records[-1].outcome, recorder.records[-1].total_tokens) == (error.type, 0)


class Dear:
    """A tenth of a dollar for a token."""

    def cost(self, target, usage):
        assert (target.provider, target.name) == ("local", MODEL)
        return Decimal("0.1") * usage.total_tokens


async def test_vectors_have_a_price_and_count_in_limits_of_money():
    async with application(limits_of=limits(usd_per_day=1), prices=Dear) as (
        client,
        embedder,
        recorder,
    ):
        assert (await client.post("/v1/embeddings", json=BODY)).status_code == 200
        record = recorder.records[-1]
        assert record.cost_usd == Decimal("0.1") * record.total_tokens > 0
        refused = None
        for _ in range(20):
            refused = await client.post("/v1/embeddings", json=BODY)
            if refused.status_code != 200:
                break
        assert refused.status_code == 429
        assert "USD a day" in refused.json()["error"]["message"]
        assert sum(record.cost_usd for record in recorder.records) <= 1
        assert len(embedder.calls) == len(recorder.records)


async def test_a_caller_that_leaves_pays_for_its_vectors():
    async with application(prices=Dear) as (client, embedder, recorder):
        embedder.delay_s = 60
        call = asyncio.create_task(client.post("/v1/embeddings", json=BODY))
        while not embedder.calls:
            await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        record = recorder.records[-1]
        assert (record.outcome, record.estimated) == ("cancelled", True)
        assert record.total_tokens > 0
        assert record.cost_usd == Decimal("0.1") * record.total_tokens
