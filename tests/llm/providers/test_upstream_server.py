"""The scripted upstream does what its catalogue says: other tests depend on it."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import sys
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from tests.support.llm.upstream import play
from tests.support.llm.upstream.answers import UKRAINIAN
from tests.support.llm.upstream.behaviours import BEHAVIOURS
from tests.support.llm.upstream.bodies import WRONG_SHAPES
from tests.support.llm.upstream.plays import parse_play, parse_script
from tests.support.llm.upstream.sockets import hanging_port, raw_server, refused_port
from tests.support.llm.upstream_calls import HEADERS, body, events, post, text_of

REPOSITORY = Path(__file__).resolve().parents[3]


async def test_echoes_the_last_user_message_and_records_the_request(client, upstream):
    status, raw, _ = await post(client, upstream, text="Що нового?")
    answer = json.loads(raw)
    assert status == 200
    assert answer["choices"][0]["message"]["content"] == "Echo: Що нового?"
    assert (
        answer["usage"]["total_tokens"]
        == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]
    )
    (call,) = upstream.requests
    assert call.headers["authorization"] == HEADERS["Authorization"]
    assert call.body["messages"][0]["content"] == "Що нового?"
    assert (call.state, upstream.counts["ok"], upstream.open_calls) == ("done", 1, 0)


async def test_streams_token_by_token_with_usage_only_on_request(client, upstream):
    _, raw, headers = await post(client, upstream, stream=True, text="один два")
    assert headers["Content-Type"].startswith("text/event-stream")
    assert raw.endswith(b"data: [DONE]\n\n")
    assert text_of(events(raw)) == "Echo: один два"
    assert not any(chunk.get("usage") for chunk in events(raw))
    _, raw, _ = await post(client, upstream, stream=True, stream_options={"include_usage": True})
    assert events(raw)[-1]["choices"] == []
    assert events(raw)[-1]["usage"]["completion_tokens"] > 0


async def test_a_script_is_played_in_order_and_its_last_behaviour_stays(client, upstream):
    upstream.script(["http_500", play("http_429", retry_after=2), "ok"])
    statuses = [(await post(client, upstream))[0] for _ in range(4)]
    assert statuses == [500, 429, 200, 200]
    upstream.script("http_503", model="other")
    assert (await post(client, upstream))[0] == 200
    assert (await post(client, upstream, model="other"))[0] == 503


async def test_the_models_name_chooses_where_no_script_does(client, upstream):
    assert (await post(client, upstream, model="http_404"))[0] == 404
    statuses = [(await post(client, upstream, model="http_502?times=2"))[0] for _ in range(3)]
    assert statuses == [502, 502, 200]
    assert [(await post(client, upstream, model="http_500,ok"))[0] for _ in range(3)] == [
        500,
        200,
        200,
    ]
    assert [(await post(client, upstream, model="flapping?down=2"))[0] for _ in range(4)] == [
        503,
        503,
        200,
        503,
    ]
    assert (await post(client, upstream, model="gpt-4.1-mini"))[0] == 200


def test_plays_are_read_from_text_and_mappings():
    assert parse_play("drip?interval_s=0.5&text=так") == play("drip", interval_s=0.5, text="так")
    assert parse_script({"name": "ok", "options": {"text": "x"}}) == [play("ok", text="x")]
    assert [one.name for one in parse_script("http_500, ok")] == ["http_500", "ok"]


async def test_an_unknown_behaviour_is_refused(upstream):
    with pytest.raises(ValueError, match="unknown behaviour `nonsense`"):
        upstream.script("nonsense")


async def test_keepalive_ends_in_an_answer_as_configured(client, upstream):
    _, raw, _ = await post(client, upstream, model="keepalive?count=3&interval_s=0.01", stream=True)
    assert raw.startswith(b": keep-alive\n\n: keep-alive\n\n")
    assert text_of(events(raw)) == "Echo: Привіт, світе"
    _, raw, _ = await post(client, upstream, model="keepalive?count=3&interval_s=0.01")
    assert raw.startswith(b"\n\n\n{")
    assert json.loads(raw)["choices"]


async def test_characters_arrive_torn_apart(client, upstream):
    async with client.post(
        f"{upstream.base_url}/chat/completions", json=body(model="utf8_split", stream=True)
    ) as response:
        pieces = [piece async for piece, _ in response.content.iter_chunks()]
    assert len(pieces) > 500
    assert text_of(events(b"".join(pieces))) == UKRAINIAN


async def test_tool_calls_come_whole_and_in_fragments(client, upstream):
    tools = [{"type": "function", "function": {"name": "projects_list"}}]
    _, raw, _ = await post(client, upstream, model="tool_calls?calls=2", tools=tools)
    message = json.loads(raw)["choices"][0]["message"]
    assert message["content"] is None
    assert [call["function"]["name"] for call in message["tool_calls"]] == [
        "projects_list",
        "projects_list",
    ]
    _, raw, _ = await post(client, upstream, model="tool_calls?calls=2", tools=tools, stream=True)
    fragments = [
        delta
        for chunk in events(raw)
        for delta in chunk["choices"][0]["delta"].get("tool_calls", [])
    ]
    assert (
        "".join(part["function"].get("arguments", "") for part in fragments if part["index"] == 1)
        == '{"city": "Київ", "days": 3}'
    )
    assert events(raw)[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_reasoning_comes_before_content(client, upstream):
    _, raw, _ = await post(client, upstream, model="reasoning", stream=True)
    deltas = [chunk["choices"][0]["delta"] for chunk in events(raw)]
    kinds = [
        "reasoning" if delta.get("reasoning_content") else "content"
        for delta in deltas
        if delta.get("content") or delta.get("reasoning_content")
    ]
    assert kinds == sorted(kinds, reverse=True)
    assert set(kinds) == {"reasoning", "content"}


@pytest.mark.parametrize(
    ("name", "usages", "in_choice"),
    [
        ("no_usage", 0, False),
        ("usage_in_final_chunk", 1, False),
        ("usage_in_last_choice", 1, True),
        ("ok?usage=every_chunk", 4, True),
    ],
)
async def test_usage_stands_as_configured(client, upstream, name, usages, in_choice):
    _, raw, _ = await post(client, upstream, model=name, stream=True, text="так")
    found = [chunk for chunk in events(raw) if chunk.get("usage")]
    assert len(found) == usages
    assert all(bool(chunk["choices"]) == in_choice for chunk in found)


@pytest.mark.parametrize(
    "name", ["no_done", "cut_clean", "no_finish_reason", "error_in_stream", "malformed_chunk"]
)
async def test_incomplete_streams_end_without_the_missing_parts(client, upstream, name):
    _, raw, _ = await post(client, upstream, model=name, stream=True, text="a b c d")
    assert (b"[DONE]" in raw) == (name in {"no_finish_reason", "malformed_chunk"})
    assert (b'"finish_reason": "stop"' in raw) == (name in {"no_done", "malformed_chunk"})
    assert (b'"error"' in raw) == (name == "error_in_stream")


@pytest.mark.parametrize(
    "name",
    [
        "crlf",
        "multiline_data",
        "no_space",
        "bom",
        "long_line",
        "utf8_split",
        "drip?interval_s=0&piece=7",
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_unusual_framing_is_still_the_whole_answer(client, upstream, name, stream):
    _, raw, _ = await post(client, upstream, model=name, stream=stream)
    text = raw.decode("utf-8-sig").replace("\r\n", "\n")
    assert (raw[:3] == b"\xef\xbb\xbf") == (name == "bom")
    if not stream:
        assert json.loads(text)["choices"][0]["finish_reason"] == "stop"
        return
    blocks = [
        "".join(line[5:].strip() for line in block.split("\n") if line.startswith("data:"))
        for block in text.split("\n\n")
        if block
    ]
    assert blocks[-1] == "[DONE]"
    assert [json.loads(block) for block in blocks[:-1]][-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
async def test_compresses(client, upstream, stream):
    _, raw, headers = await post(client, upstream, model="gzip_body", stream=stream)
    assert headers["Content-Encoding"] == "gzip"
    assert b"choices" in gzip.decompress(raw)


@pytest.mark.parametrize("kind", list(WRONG_SHAPES))
async def test_wrong_shapes_are_json(client, upstream, kind):
    status, raw, _ = await post(client, upstream, model=f"wrong_shape?kind={kind}")
    assert status == 200
    assert json.loads(raw) == WRONG_SHAPES[kind]
    assert (await post(client, upstream, model=f"wrong_shape?kind={kind}", stream=True))[
        1
    ].endswith(b"[DONE]\n\n")


async def test_garbage_bodies(client, upstream):
    _, raw, headers = await post(client, upstream, model="html")
    assert headers["Content-Type"].startswith("text/html")
    assert raw.startswith(b"<!DOCTYPE")
    with pytest.raises(json.JSONDecodeError):
        json.loads((await post(client, upstream, model="truncated_json"))[1])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 429, 500, 502, 503, 529])
async def test_scripted_refusals_echo_secrets(client, upstream, status, stream):
    got, raw, _ = await post(client, upstream, model=f"http_{status}", stream=stream)
    assert got == status
    assert "sk-secret-1234567890" in json.loads(raw)["error"]["message"]


async def test_retry_after_in_seconds_as_a_date_and_not_at_all(client, upstream):
    assert (await post(client, upstream, model="http_429?retry_after=7"))[2]["Retry-After"] == "7"
    when = parsedate_to_datetime(
        (await post(client, upstream, model="http_503?retry_after_date=60"))[2]["Retry-After"]
    )
    assert 50 < (when - datetime.now(UTC)).total_seconds() <= 61
    assert "Retry-After" not in (await post(client, upstream, model="http_429"))[2]


@pytest.mark.parametrize(
    "name",
    [
        "context_length",
        "context_length?style=vllm",
        "context_length?style=vllm_nested",
        "context_length?style=deepseek",
        "context_length?style=llama",
        "content_filter",
        "content_filter?style=openai",
    ],
)
async def test_content_refusals_are_400(client, upstream, name):
    status, raw, _ = await post(client, upstream, model=name)
    assert status == 400
    assert json.loads(raw)


async def test_a_followed_redirect_is_seen(client, upstream):
    status, _, headers = await post(client, upstream, model="redirect")
    assert (status, upstream.elsewhere) == (307, [])
    async with client.post(headers["Location"]) as response:
        assert response.status == 418
    assert upstream.elsewhere[0]["authorization"] == HEADERS["Authorization"]


async def test_embeddings_and_models(client, upstream):
    async with client.post(
        f"{upstream.base_url}/embeddings",
        json={"model": "e", "input": ["a", "b", "a"], "dimensions": 8},
    ) as response:
        rows = [row["embedding"] for row in (await response.json())["data"]]
    assert rows[0] == rows[2] != rows[1]
    assert sum(value * value for value in rows[0]) == pytest.approx(1)
    async with client.get(f"{upstream.base_url}/models") as response:
        assert {row["id"] for row in (await response.json())["data"]} == set(BEHAVIOURS)


async def test_addresses_that_fail_below_http():
    with refused_port() as port, pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    with hanging_port() as port, pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), 0.3)
    async with raw_server(b"SSH-2.0-nonsense\r\n") as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await reader.read() == b"SSH-2.0-nonsense\r\n"
        writer.close()


async def test_runs_as_a_process_with_a_control_route(client):
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.support.llm.upstream",
        "--port",
        "0",
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        base_url = (await asyncio.wait_for(process.stdout.readline(), 20)).decode().strip()
        control = base_url.removesuffix("/v1") + "/control"
        async with client.post(
            control, json={"plays": ["http_500", "ok"], "model": "m"}
        ) as response:
            assert response.status == 200
        for expected in (500, 200):
            async with client.post(f"{base_url}/chat/completions", json=body()) as response:
                assert response.status == expected
        async with client.post(control, json={"plays": "nonsense"}) as response:
            assert response.status == 400
        async with client.get(control) as response:
            state = await response.json()
        assert state["counts"] == {"http_500": 1, "ok": 1}
        assert [call["state"] for call in state["calls"]] == ["done", "done"]
    finally:
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0
