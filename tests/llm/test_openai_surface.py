"""`/v1/chat/completions` and `/v1/models` with the official client over real HTTP."""

import asyncio
import json

import httpx
import openai
import pytest
from pydantic import BaseModel

from tests.support.llm.openai_surface import BODY, MESSAGES, client_of, running
from tests.support.llm.upstream import play

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


async def test_the_official_client_gets_a_whole_answer():
    async with running() as (url, upstream, recorder), client_of(url) as client:
        answer = await client.chat.completions.create(
            **BODY, temperature=0, max_completion_tokens=9, user="u-1", service_tier="flex"
        )
        (choice,) = answer.choices
        assert choice.message.content == "Echo: Яка столиця України?"
        assert (choice.finish_reason, choice.message.role, choice.message.tool_calls) == (
            "stop",
            "assistant",
            None,
        )
        assert answer.model == "gpt-4.1-mini"
        assert (
            answer.usage.total_tokens
            == answer.usage.prompt_tokens + answer.usage.completion_tokens
            > 0
        )
        assert answer.usage.completion_tokens_details.reasoning_tokens == 0
        assert answer.id.startswith("chatcmpl-")
        sent = upstream.requests[-1].body
        assert (sent["max_tokens"], sent["user"], sent["service_tier"], sent["temperature"]) == (
            9,
            "u-1",
            "flex",
            0,
        )
        assert (recorder.records[-1].agent_id, recorder.records[-1].microdao_id) == (
            "agent:unnamed",
            "microdao:unnamed",
        )


async def test_the_synchronous_client_works_too():
    async with running() as (url, _, _):

        def ask():
            with openai.OpenAI(api_key="s3cret", base_url=f"{url}/v1/", max_retries=0) as client:
                return client.chat.completions.create(**BODY).choices[0].message.content

        assert await asyncio.to_thread(ask) == "Echo: Яка столиця України?"


@pytest.mark.parametrize("include_usage", [False, True])
async def test_a_stream_of_the_official_client(include_usage):
    async with running() as (url, _, recorder), client_of(url) as client:
        options = {"stream_options": {"include_usage": True}} if include_usage else {}
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(**BODY, stream=True, **options)
        ]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == "Echo: Яка столиця України?"
        assert chunks[0].choices[0].delta.role == "assistant"
        assert len({chunk.id for chunk in chunks}) == 1
        reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
        assert reasons == [None] * (len(reasons) - 1) + ["stop"]
        assert ([chunk.usage is not None for chunk in chunks][-1], bool(chunks[-1].choices)) == (
            include_usage,
            not include_usage,
        )
        assert recorder.records[-1].streamed


async def test_the_raw_stream_ends_with_done():
    async with running(secret=None) as (url, _, _), httpx.AsyncClient() as client:
        text = (await client.post(f"{url}/v1/chat/completions", json={**BODY, "stream": True})).text
        assert text.endswith("data: [DONE]\n\n")
        assert all(
            "usage" not in json.loads(line[6:])
            for line in text.splitlines()
            if line.startswith("data: {")
        )


async def test_tools_whole_and_streamed():
    async with running("tool_calls") as (url, upstream, _), client_of(url) as client:
        asked = {**BODY, "tools": [TOOL], "tool_choice": "required"}
        message = (await client.chat.completions.create(**asked)).choices[0].message
        assert message.content is None
        assert message.tool_calls[0].function.name == "get_weather"
        assert upstream.requests[-1].body["tools"] == [TOOL]
        async with client.chat.completions.stream(**asked) as stream:
            final = await stream.get_final_completion()
        assert final.choices[0].finish_reason == "tool_calls"
        assert (
            json.loads(final.choices[0].message.tool_calls[0].function.arguments)["city"] == "Київ"
        )
        # The client's own object goes back as a message, with whatever it keeps there.
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "12 °C"}
        upstream.script("ok")
        answer = await client.chat.completions.create(
            model="plain", messages=[*MESSAGES, message, result]
        )
        assert answer.choices[0].finish_reason == "stop"
        assert set(upstream.requests[-1].body["messages"][1]) == {"role", "content", "tool_calls"}


class City(BaseModel):
    name: str


async def test_structured_output():
    async with (
        running(play("ok", text='{"name": "Київ"}')) as (url, upstream, _),
        client_of(url) as client,
    ):
        parsed = (
            (await client.chat.completions.parse(**BODY, response_format=City))
            .choices[0]
            .message.parsed
        )
        assert parsed == City(name="Київ")
        assert upstream.requests[-1].body["response_format"]["json_schema"]["schema"][
            "required"
        ] == ["name"]


async def test_text_parts_and_reasoning():
    async with running("reasoning") as (url, upstream, _), client_of(url) as client:
        parts = [{"type": "text", "text": "Яка "}, {"type": "text", "text": "столиця?"}]
        message = (
            (
                await client.chat.completions.create(
                    model="plain", messages=[{"role": "user", "content": parts}]
                )
            )
            .choices[0]
            .message
        )
        assert message.content == "Echo: Яка столиця?"
        assert message.reasoning_content
        assert upstream.requests[-1].body["messages"][0]["content"] == parts


@pytest.mark.parametrize(
    ("headers", "metadata", "expected"),
    [
        (
            {},
            {"agent_id": "agent:sofia", "microdao_id": "microdao:7", "channel_id": "channel:1"},
            ("agent:sofia", "microdao:7", "channel:1"),
        ),
        (
            {"X-Agent-Id": "agent:x", "X-Microdao-Id": "microdao:8"},
            None,
            ("agent:x", "microdao:8", None),
        ),
        (
            {"X-Microdao-Id": "microdao:8"},
            {"agent_id": "agent:sofia", "topic": "demo"},
            ("agent:sofia", "microdao:8", None),
        ),
        (
            {"X-Agent-Id": "agent:x"},
            {"agent_id": "", "microdao_id": "microdao:9", "channel_id": None},
            ("agent:x", "microdao:9", None),
        ),
        (
            {"X-Agent-Id": "agent:x", "X-Microdao-Id": "microdao:8"},
            {"topic": "demo"},
            ("agent:x", "microdao:8", None),
        ),
    ],
)
async def test_identity(headers, metadata, expected):
    async with running() as (url, upstream, recorder), client_of(url) as client:
        options = {"metadata": metadata} if metadata else {}
        await client.chat.completions.create(**BODY, **options, extra_headers=headers)
        record = recorder.records[-1]
        assert (record.agent_id, record.microdao_id, record.channel_id) == expected
        assert "metadata" not in upstream.requests[-1].body


async def test_models_with_the_official_client():
    async with (
        running(**{"org/model:1": {"provider": "backup", "name": "m"}}) as (url, _, _),
        client_of(url) as client,
    ):
        names = {model.id: model.owned_by async for model in client.models.list()}
        assert (names["plain"], names["here"], names["embedder"]) == ("openai", "local", "local")
        assert (await client.models.retrieve("plain")).id == "plain"
        assert (await client.models.retrieve("org/model:1")).owned_by == "backup"
        with pytest.raises(openai.NotFoundError) as refused:
            await client.models.retrieve("nope")
        assert refused.value.code == "model_not_found"


REFUSAL = "Вибачте, з цим не допоможу."


async def test_a_refusal_is_returned_as_one_and_can_be_sent_back_as_a_turn():
    async with running(play("ok", refusal=REFUSAL)) as (url, upstream, _), client_of(url) as client:
        answer = await client.chat.completions.create(**BODY)
        message = answer.choices[0].message
        assert (message.refusal, message.content) == (REFUSAL, None)
        again = [
            *BODY["messages"],
            message.model_dump(exclude_none=True),
            {"role": "user", "content": "Чому?"},
        ]
        await client.chat.completions.create(model=BODY["model"], messages=again)
        assert upstream.requests[-1].body["messages"][1] == {
            "role": "assistant",
            "content": REFUSAL,
        }


async def test_a_streamed_refusal_is_returned_as_one():
    chunks = [
        {"choices": [{"index": 0, "delta": {"refusal": part}, "finish_reason": None}]}
        for part in ("Вибачте, ", "ні.")
    ]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    async with (
        running(play("chunks", chunks=chunks)) as (url, _, recorder),
        client_of(url) as client,
    ):
        found = [chunk async for chunk in await client.chat.completions.create(**BODY, stream=True)]
        assert (
            "".join(chunk.choices[0].delta.refusal or "" for chunk in found if chunk.choices)
            == "Вибачте, ні."
        )
        assert [attempt["outcome"] for attempt in found[-1].attempts] == ["ok"]
        assert recorder.records[-1].completion_tokens > 0
