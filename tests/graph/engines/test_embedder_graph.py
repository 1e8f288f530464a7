"""The embedder with its real model in the real graph, through `/v1/embeddings`."""

import asyncio
import math
import time

import pytest

pytestmark = [pytest.mark.graph, pytest.mark.timeout(600, func_only=True)]

PATH = "/internal/llm/v1/embeddings"
MODEL = "multilingual-e5-small"


async def vectors(client, texts, kind="passage", agent="agent:sofia"):
    headers = {"X-Agent-Id": agent, "X-Microdao-Id": "microdao:7"}
    response = await client.post(
        PATH,
        json={"model": MODEL, "input": texts, "input_type": kind},
        headers=headers,
        timeout=120,
    )
    assert response.status_code == 200, response.text
    return [row["embedding"] for row in response.json()["data"]]


def cosine(one, other):
    return sum(left * right for left, right in zip(one, other, strict=True))


async def test_vectors_are_the_models_own_and_know_both_languages(client):
    right, wrong = await vectors(
        client, ["Ключ від майстерні лежить у Назара.", "Автобус зупиняється біля лікарні."]
    )
    assert len(right) == 384
    assert math.isclose(cosine(right, right), 1, abs_tol=1e-4)
    for question in ("Де ключ від майстерні?", "Where is the workshop key?"):
        (asked,) = await vectors(client, [question], "query")
        assert cosine(asked, right) > cosine(asked, wrong)
    (as_passage,) = await vectors(client, ["Де ключ від майстерні?"])
    (as_question,) = await vectors(client, ["Де ключ від майстерні?"], "query")
    assert cosine(as_passage, as_question) < 0.999  # with the prefixes


async def test_arrays_of_tokens_are_taken_only_from_the_models_own_tokenizer(client):
    (of_text,) = await vectors(client, ["key"])
    (of_tokens,) = await vectors(client, [0, 22799, 2])
    assert cosine(of_text, of_tokens) == pytest.approx(1, abs=1e-3)
    refused = await client.post(PATH, json={"model": MODEL, "input": [[15339, 1917]]})
    assert refused.status_code == 400
    assert "check_embedding_ctx_length=False" in refused.json()["error"]["message"]


async def test_a_text_has_the_same_vector_alone_and_in_a_crowd(client):
    (alone,) = await vectors(client, ["Обмін насінням відбудеться в неділю."])
    crowd = await vectors(
        client,
        ["довший текст " * 60, "Обмін насінням відбудеться в неділю.", "a", "🙂", "ї" * 3_000],
    )
    assert cosine(alone, crowd[1]) == pytest.approx(1, abs=1e-3)
    assert all(cosine(vector, vector) == pytest.approx(1, abs=1e-3) for vector in crowd)


async def overtakes(work, call):
    """Checks that the call is answered while most of the work still waits."""
    asked = time.monotonic()
    await call
    answered = time.monotonic()
    await work
    assert time.monotonic() - answered > answered - asked


async def test_questions_overtake_ingestion(client):
    """A few hundred passages are seconds of work; a question waits for one pass of the model."""
    ingestion = asyncio.create_task(
        vectors(
            client,
            [
                f"Протокол зборів номер {number}: " + "обговорили кошторис, " * 10
                for number in range(300)
            ],
        )
    )
    await asyncio.sleep(0.5)
    await overtakes(ingestion, vectors(client, ["Де протокол?"], "query", agent="agent:other"))


async def test_a_small_tenant_does_not_wait_for_a_big_one(client):
    big = asyncio.create_task(
        vectors(
            client,
            [f"Великий архів, аркуш {number}. " + "Текст. " * 20 for number in range(300)],
            agent="agent:big",
        )
    )
    await asyncio.sleep(0.5)
    await overtakes(big, vectors(client, ["Один малий запис."], agent="agent:small"))


async def test_a_tenant_over_its_share_of_the_queue_is_asked_to_retry(client):
    calls = [
        client.post(
            PATH,
            json={
                "model": MODEL,
                "input": [f"{call}-{number} " + "слово " * 30 for number in range(512)],
            },
            timeout=120,
        )
        for call in range(4)
    ]
    answers = await asyncio.gather(*calls)
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    for answer in refused:
        assert answer.status_code in {503, 504}
        assert answer.json()["error"]["retryable"] is True
        assert answer.json()["error"]["type"] == "server_error"


async def test_a_killed_embedder_comes_back(graph, client):
    (replica,) = graph.replicas("engines", "Embedder")
    replica.kill()
    until = time.monotonic() + 240
    statuses = set()
    while time.monotonic() < until:
        response = await client.post(PATH, json={"model": MODEL, "input": "ще тут?"}, timeout=70)
        statuses.add(response.status_code)
        if response.status_code == 200 and graph.replicas("engines", "Embedder") != [replica]:
            break
        await asyncio.sleep(1)
    assert response.status_code == 200
    assert statuses <= {200, 503, 504}
