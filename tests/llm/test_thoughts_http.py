"""Thoughts stay out of the answer on every route: whole and streamed, ours and OpenAI's."""

import json

import pytest

from contracts.llm.answers import ProxyResponse
from tests.support.llm.proxy_http import BODY, events_of, running
from tests.support.llm.upstream import play

THOUGHT, ANSWER = "Питає про столицю.", "Це Київ."
TAGGED = f"<think>{THOUGHT}</think>\n\n{ANSWER}"
MARKED = {"provider": "openai", "name": "r1"}
MODELS = {
    "r1": {**MARKED, "reasoning": "opened"},
    "marked": {**MARKED, "name": "marked", "reasoning": True},
}


async def asked(client, way, **fields):
    """(content, thought, tool calls, finish reason) as a client of this route joins them."""
    body = {**BODY, **fields}
    if way == "proxy":
        answer = ProxyResponse.model_validate((await client.post("/proxy", json=body)).json())
        return answer.content, answer.reasoning_content, answer.tool_calls, answer.finish_reason
    if way == "stream":
        events = [data for _, data in events_of((await client.post("/stream", json=body)).text)]
        content, thought = (
            "".join(event.get(name, "") for event in events)
            for name in ("delta", "reasoning_delta")
        )
        return (
            content,
            thought or None,
            [call for event in events for call in event.get("tool_calls", [])] or None,
            events[-1]["finish_reason"],
        )
    if way == "v1":
        choice = (await client.post("/v1/chat/completions", json=body)).json()["choices"][0]
        message = choice["message"]
        return (
            message["content"],
            message.get("reasoning_content"),
            message.get("tool_calls"),
            choice["finish_reason"],
        )
    text = (await client.post("/v1/chat/completions", json={**body, "stream": True})).text
    choices = [
        json.loads(line[6:])["choices"][0]
        for line in text.splitlines()
        if line.startswith("data: {")
    ]
    deltas = [choice["delta"] for choice in choices]
    content, thought = (
        "".join(delta.get(name) or "" for delta in deltas)
        for name in ("content", "reasoning_content")
    )
    return (
        content,
        thought or None,
        [call for delta in deltas for call in delta.get("tool_calls", [])] or None,
        choices[-1]["finish_reason"],
    )


EVERY_WAY = pytest.mark.parametrize("way", ["proxy", "stream", "v1", "v1-stream"])


@EVERY_WAY
@pytest.mark.parametrize("letters", [1, 3, 1_000])
async def test_a_thought_between_tags_comes_in_a_field_of_its_own(way, letters):
    async with running(play("ok", text=TAGGED, letters=letters)) as (client, _, recorder):
        assert await asked(client, way) == (ANSWER, THOUGHT, None, "stop")
        assert recorder.records[-1].completion_tokens > 0


@EVERY_WAY
async def test_an_answer_that_is_nothing_but_a_thought_is_empty(way):
    async with running(play("ok", text=f"<think>{THOUGHT}", finish_reason="length")) as (
        client,
        _,
        _,
    ):
        assert await asked(client, way) == ("", THOUGHT, None, "length")


@EVERY_WAY
async def test_a_thought_that_the_prompt_opened_ends_at_its_closing_tag(way):
    async with running(play("ok", text=f"{THOUGHT}</think>\n{ANSWER}"), **MODELS) as (client, _, _):
        assert await asked(client, way, model="r1") == (ANSWER, THOUGHT, None, "stop")


@EVERY_WAY
async def test_an_upstream_that_keeps_thoughts_apart_itself_is_believed(way):
    async with running(play("ok", text=ANSWER, reasoning=THOUGHT), **MODELS) as (client, _, _):
        for model in ("plain", "r1", "marked"):
            assert await asked(client, way, model=model) == (ANSWER, THOUGHT, None, "stop")


@EVERY_WAY
@pytest.mark.parametrize(
    "thought",
    [
        {"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]},
        {"type": "reasoning", "text": THOUGHT},
    ],
)
async def test_a_part_of_the_content_that_is_a_thought_is_one(way, thought):
    parts = [thought, {"type": "text", "text": ANSWER}]
    async with running(play("ok", parts=parts)) as (client, _, _):
        assert await asked(client, way) == (ANSWER, THOUGHT, None, "stop")


@EVERY_WAY
async def test_text_about_thoughts_is_text(way):
    text = f"Ось: `{TAGGED}`"
    async with running(play("ok", text=text), **MODELS) as (client, _, _):
        assert await asked(client, way) == (text, None, None, "stop")
        assert await asked(client, way, model="marked") == (text, None, None, "stop")


async def test_a_marked_models_whole_answer_may_lack_the_opening_tag():
    async with running(play("ok", text=f"{THOUGHT}</think>{ANSWER}"), **MODELS) as (client, _, _):
        assert await asked(client, "proxy", model="marked") == (ANSWER, THOUGHT, None, "stop")


@EVERY_WAY
async def test_a_call_that_was_only_thought_of_is_not_made(way):
    tools = [{"type": "function", "function": {"name": "pay", "parameters": {}}}]
    async with running(play("tool_calls", text="<think>Може, заплатити?")) as (client, _, _):
        content, thought, calls, reason = await asked(client, way, tools=tools)
        assert (content or "", thought, calls, reason) == ("", "Може, заплатити?", None, "stop")


@EVERY_WAY
async def test_a_call_after_a_thought_is_one(way):
    tools = [{"type": "function", "function": {"name": "pay", "parameters": {}}}]
    async with running(play("tool_calls", text=f"<think>{THOUGHT}</think>")) as (client, _, _):
        content, thought, calls, reason = await asked(client, way, tools=tools)
        assert (content or "", thought, calls[0]["function"]["name"], reason) == (
            "",
            THOUGHT,
            "pay",
            "tool_calls",
        )
