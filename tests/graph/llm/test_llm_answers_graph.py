"""OpenAI's client, idempotency keys, the cache and batches on the real graph, over two replicas."""

import asyncio
import json
import uuid

import httpx
import openai
import pytest

from tests.support.graph.llm_calls import CALLER, FRANCE, body, until

pytestmark = [pytest.mark.graph, pytest.mark.timeout(420, func_only=True)]

PREFIX = "/internal/llm"
TENANT = {"microdao_id": CALLER["microdao_id"]}


@pytest.fixture
async def openai_client(graph):
    async with openai.AsyncOpenAI(
        api_key="any", base_url=f"{graph.url}{PREFIX}/v1", max_retries=0
    ) as client:
        yield client


async def test_the_official_client_asks_the_local_engine(openai_client):
    asked = {
        "model": "dagi-local-8b",
        "messages": FRANCE,
        "temperature": 0,
        "max_completion_tokens": 20,
    }
    answer = await openai_client.chat.completions.create(**asked)
    assert "Paris" in answer.choices[0].message.content
    assert (answer.model, answer.usage.completion_tokens > 0) == ("smollm2-135m-instruct", True)
    chunks = [
        chunk
        async for chunk in await openai_client.chat.completions.create(
            **asked, stream=True, stream_options={"include_usage": True}
        )
    ]
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        == answer.choices[0].message.content
    )
    assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens


async def test_the_official_client_lists_models_and_reads_errors(openai_client):
    models = {model.id async for model in openai_client.models.list()}
    assert {"gpt-4.1-mini", "dagi-local-8b"} < models
    assert (await openai_client.models.retrieve("dagi-local-8b")).owned_by == "local"
    with pytest.raises(openai.NotFoundError) as refused:
        await openai_client.chat.completions.create(model="nope", messages=FRANCE)
    assert refused.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        await openai_client.completions.create(model="nope", prompt="x")


async def test_one_key_is_one_call_across_replicas(graph):
    graph.upstream("slow?wait_s=1")
    asked, headers = body("gpt-4.1-mini"), {"Idempotency-Key": uuid.uuid4().hex}

    async def ask():
        # A connection of its own for each, so that both replicas are asked.
        async with httpx.AsyncClient(base_url=graph.url, timeout=60) as client:
            return await client.post(f"{PREFIX}/proxy", json=asked, headers=headers)

    answers = await asyncio.gather(*(ask() for _ in range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert graph.upstream()["total"] == 1


async def test_each_replica_fills_its_cache_once(graph, client):
    graph.upstream("ok")
    asked = body(
        "gpt-4.1-mini",
        temperature=0,
        cache={"ttl_s": 60},
        messages=[{"role": "user", "content": uuid.uuid4().hex}],
    )
    answers = [(await client.post(f"{PREFIX}/proxy", json=asked)).json() for _ in range(12)]
    assert len({answer["content"] for answer in answers}) == 1
    assert graph.upstream()["total"] == sum("cached" not in answer for answer in answers) <= 2


async def test_a_batch_is_worked_off_by_the_graph(graph, client):
    graph.upstream("ok")
    requests = [
        {
            "custom_id": f"r-{number}",
            **body("gpt-4.1-mini", messages=[{"role": "user", "content": f"q{number}"}]),
        }
        for number in range(30)
    ]
    requests.append({"custom_id": "local", **body(temperature=0, max_tokens=10)})
    submitted = await client.post(f"{PREFIX}/batch", json={"requests": requests})
    assert submitted.status_code == 202, submitted.text
    path = f"{PREFIX}/batch/{submitted.json()['id']}"

    async def completed():
        batch = (await client.get(path, params=TENANT)).json()
        return batch["status"] == "completed" and batch

    assert (await until(completed, 120))["counts"]["succeeded"] == 31
    lines = [
        json.loads(line)
        for line in (await client.get(f"{path}/items", params=TENANT)).text.splitlines()
    ]
    assert [line["response"]["content"] for line in lines[:30]] == [
        f"Echo: q{number}" for number in range(30)
    ]
    assert "Paris" in lines[30]["response"]["content"]
    assert graph.upstream()["total"] == 30
    assert (await client.get(path, params={"microdao_id": "microdao:other"})).status_code == 404
