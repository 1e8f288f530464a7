"""`providers/openai_compatible.py` against an upstream that behaves and misbehaves, over real
sockets.

Each row of the tables is one behaviour of `tests/support/llm/upstream`; where it makes sense it is
tested streaming and not.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from contracts import errors
from contracts.llm.routing import Timeouts
from tests.support.llm.openai_calls import (
    ANSWER,
    BOTH,
    KEY,
    QUESTION,
    assert_leaf,
    call,
    named,
)
from tests.support.llm.upstream import play
from tests.support.llm.upstream.answers import UKRAINIAN
from tests.support.llm.upstream.behaviours import BEHAVIOURS

# --- answers ---

WHOLE_ANSWERS = [
    play("ok"),
    play("no_usage"),
    play("usage_in_final_chunk"),
    play("usage_in_last_choice"),
    play("ok", usage="every_chunk"),
    play("keepalive", count=3, interval_s=0.02),
    play("role_only", count=3, interval_s=0.02),
    play("drip", interval_s=0, piece=3),
    play("utf8_split"),
    play("crlf"),
    play("multiline_data"),
    play("no_space"),
    play("bom"),
    play("gzip_body"),
    play("gzip_body", members=7),
    play("long_line"),
    play("no_done"),
    play("no_done", hold=True),
    play("slow", wait_s=0.1),
    play("slow_first_token", wait_s=0.1),
]


@BOTH
@pytest.mark.parametrize("one", WHOLE_ANSWERS, ids=named)
async def test_unusual_but_whole_answers_are_answers(provider, upstream, one, stream):
    upstream.script(one)
    outcome = await call(provider, stream=stream)
    assert outcome.error is None
    assert outcome.text == {"utf8_split": UKRAINIAN, "long_line": "я" * 512 * 512}.get(
        one.name, ANSWER
    )
    assert outcome.finish_reason == "stop"
    estimated = one.name == "no_usage"
    assert bool(outcome.usage.estimated) == estimated
    assert outcome.usage.completion_tokens > 0
    assert (
        outcome.usage.total_tokens == outcome.usage.prompt_tokens + outcome.usage.completion_tokens
    )


async def test_a_stream_without_a_finish_reason_is_whole_only_by_configuration(
    make_provider, upstream
):
    upstream.script("no_finish_reason")
    assert_leaf(
        (await call(make_provider(upstream.base_url), stream=True)).error,
        errors.UpstreamInvalidResponse,
        upstream,
    )
    outcome = await call(make_provider(upstream.base_url, done_completes=True), stream=True)
    assert (outcome.error, outcome.text, outcome.finish_reason) == (None, ANSWER, "stop")
    upstream.script(play("cut_clean", after=2))
    assert (
        await call(make_provider(upstream.base_url, done_completes=True), stream=True)
    ).error is not None
    upstream.script("no_finish_reason")
    whole = await call(make_provider(upstream.base_url), stream=False)
    assert (whole.error, whole.text) == (None, ANSWER), "a whole body of JSON cannot have been cut"


@pytest.mark.parametrize(
    "one",
    [
        play("ok"),
        play("reasoning"),
        play("tool_calls", calls=2),
        play("utf8_split"),
        play("no_usage"),
    ],
    ids=named,
)
async def test_a_whole_answer_may_be_read_as_a_stream(make_provider, upstream, one):
    upstream.script(one)
    plain = await call(make_provider(upstream.base_url), stream=False)
    streamed = await call(make_provider(upstream.base_url, stream_whole_answers=True), stream=False)
    assert streamed.response.model_copy(update={"usage": plain.usage}) == plain.response
    assert streamed.usage.total_tokens > 0
    assert [request.stream for request in upstream.requests] == [False, True]


async def test_a_whole_answer_that_is_read_as_a_stream_is_given_up_after_the_first_token_time(
    make_provider, upstream
):
    timeouts = Timeouts(connect_s=5, first_token_s=0.2, idle_s=0.2, total_s=60)
    provider = make_provider(upstream.base_url, stream_whole_answers=True)
    for one in ("silence", play("keepalive", interval_s=0.02), play("stall", after=2)):
        upstream.script(one)
        outcome = await call(provider, stream=False, timeouts=timeouts)
        assert_leaf(outcome.error, errors.UpstreamTimeout, upstream)
    await upstream.wait_for(cancelled=3, timeout_s=30)


@BOTH
@pytest.mark.parametrize("reason", ["error", "abort", "insufficient_system_resource"])
async def test_an_answer_that_the_provider_broke_off_is_a_failure(
    provider, upstream, stream, reason
):
    upstream.script(play("ok", finish_reason=reason))
    assert_leaf(
        (await call(provider, stream=stream)).error, errors.UpstreamInvalidResponse, upstream
    )


@BOTH
async def test_usage_keeps_cached_and_reasoning_tokens(provider, upstream, stream):
    upstream.script(play("reasoning", cached_tokens=7, reasoning_tokens=5))
    usage = (await call(provider, stream=stream)).usage
    assert (usage.cached_tokens, usage.reasoning_tokens, usage.estimated) == (7, 5, None)
    upstream.script(
        play("ok", usage_fields={"prompt_cache_hit_tokens": 9, "prompt_tokens_details": None})
    )
    assert (await call(provider, stream=stream)).usage.cached_tokens == 9


@BOTH
async def test_reasoning_counted_beside_the_answer_is_part_of_the_completion(
    provider, upstream, stream
):
    usage = {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "total_tokens": 60,
        "completion_tokens_details": {"reasoning_tokens": 50},
    }
    upstream.script(play("ok", usage_fields=usage))
    found = (await call(provider, stream=stream)).usage
    assert (
        found.prompt_tokens,
        found.completion_tokens,
        found.reasoning_tokens,
        found.total_tokens,
    ) == (7, 53, 50, 60)
    upstream.script(play("ok", usage_fields=usage | {"completion_tokens": 53}))
    assert (await call(provider, stream=stream)).usage == found


@BOTH
@pytest.mark.parametrize(
    "usage",
    [
        "text",
        [1],
        {"prompt_tokens": "7"},
        {"prompt_tokens": -3, "completion_tokens": None},
        {"total_tokens": 1e99},
    ],
)
async def test_usage_that_is_no_usage_is_estimated(provider, upstream, stream, usage):
    fields = usage if isinstance(usage, dict) else {"prompt_tokens": usage}
    upstream.script(
        play("ok", usage_fields={"prompt_tokens": None, "completion_tokens": None, **fields})
    )
    outcome = await call(provider, stream=stream)
    assert outcome.text == ANSWER
    assert outcome.usage.estimated is True


@BOTH
@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
async def test_reasoning_is_kept_apart_from_content(provider, upstream, stream, name):
    upstream.script(play("reasoning", reasoning="Думаю про це.", reasoning_field=name))
    outcome = await call(provider, stream=stream)
    assert (outcome.reasoning, outcome.text) == ("Думаю про це.", ANSWER)


@BOTH
@pytest.mark.parametrize(
    "reason", ["stop", "length", "content_filter", "tool_calls", "something_new"]
)
async def test_the_finish_reason_is_returned(provider, upstream, stream, reason):
    upstream.script(
        play("content_filter_finish")
        if reason == "content_filter"
        else play("ok", finish_reason=reason)
    )
    assert (await call(provider, stream=stream)).finish_reason == reason


async def test_tool_calls_come_whole(provider, upstream):
    upstream.script(play("tool_calls", calls=2))
    tools = [{"type": "function", "function": {"name": "projects_list"}}]
    outcome = await call(provider, stream=False, tools=tools)
    assert (outcome.text, outcome.finish_reason) == ("", "tool_calls")
    found = outcome.response.tool_calls
    assert [one["function"]["name"] for one in found] == ["projects_list"] * 2
    assert [json.loads(one["function"]["arguments"]) for one in found] == [
        {"city": "Київ", "days": 3}
    ] * 2
    assert len({one["id"] for one in found}) == 2


@pytest.mark.parametrize(
    "options", [{}, {"calls": 3}, {"whole": True}, {"text": "Дивлюсь. "}], ids=str
)
async def test_tool_call_fragments_are_forwarded_unchanged(provider, upstream, options):
    upstream.script(play("tool_calls", **options))
    outcome = await call(provider, stream=True)
    assert outcome.error is None
    assert outcome.text == options.get("text", "")
    for index in range(options.get("calls", 1)):
        mine = [one for one in outcome.fragments if one["index"] == index]
        assert (
            "".join(one["function"].get("arguments", "") for one in mine)
            == '{"city": "Київ", "days": 3}'
        )
        assert [one["id"] for one in mine if one.get("id")] == [f"call_{index}"]
    assert outcome.finish_reason == "tool_calls"


# --- what is sent ---


@BOTH
async def test_the_request_is_openais(make_provider, upstream, stream):
    settings = {
        "extra_body": {"service_tier": "flex", "temperature": 1.0},
        "headers": {"X-Team": "core"},
    }
    options = {
        "temperature": 0.0,
        "max_tokens": 5,
        "stop": ["x"],
        "seed": 7,
        "top_p": 0.5,
        "response_format": {"type": "json_object"},
    }
    await call(
        make_provider(upstream.base_url, **settings), stream=stream, model="gpt-4.1-mini", **options
    )
    (sent,) = upstream.requests
    extra = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    assert sent.body == {
        "model": "gpt-4.1-mini",
        "messages": QUESTION,
        "service_tier": "flex",
        **options,
        **extra,
    }
    assert sent.path == "/v1/chat/completions"
    assert sent.headers["authorization"] == f"Bearer {KEY}"
    assert (sent.headers["x-team"], sent.headers["content-type"]) == ("core", "application/json")
    assert "cookie" not in sent.headers


@BOTH
async def test_the_answers_bound_has_the_providers_name_for_it(make_provider, upstream, stream):
    await call(make_provider(upstream.base_url), stream=stream, max_tokens=7)
    await call(
        make_provider(upstream.base_url, max_tokens_field="max_completion_tokens"),
        stream=stream,
        max_tokens=7,
    )
    await call(
        make_provider(upstream.base_url, max_tokens_field="max_completion_tokens"), stream=stream
    )
    found = [
        (request.body.get("max_tokens"), request.body.get("max_completion_tokens"))
        for request in upstream.requests
    ]
    assert found == [(7, None), (None, 7), (None, None)]


async def test_the_value_that_opens_this_graph_is_sent_to_no_provider(make_provider, upstream):
    provider = make_provider(upstream.base_url, own_secret=KEY)
    assert "UPSTREAM_KEY holds a secret of this graph" in provider.unavailable_reason()
    await call(provider, stream=False)
    assert "authorization" not in upstream.requests[0].headers


async def test_without_a_key_it_is_unavailable_and_names_the_variable(make_provider, upstream):
    provider = make_provider(upstream.base_url, key=None)
    assert "UPSTREAM_KEY" in provider.unavailable_reason()
    assert make_provider(upstream.base_url).unavailable_reason() is None
    await call(provider, stream=False)
    assert "authorization" not in upstream.requests[0].headers


async def test_the_environments_proxies_are_not_used(make_provider, upstream, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert (await call(make_provider(upstream.base_url), stream=False)).text == ANSWER


async def test_connections_are_reused(provider, upstream):
    for stream in (False, True, False, True):
        assert (await call(provider, stream=stream)).error is None
    assert len({sent.peer_port for sent in upstream.requests}) == 1


def test_every_behaviour_of_the_upstream_is_met_here():
    corpus = (
        Path(__file__).parents[3] / "tests/support/llm/upstream/corpus/__init__.py"
    )  # its test drives what that file plays
    files = [*Path(__file__).parent.glob("test_openai_compatible*.py"), corpus]
    source = "".join(file.read_text(encoding="utf-8") for file in files)
    assert [name for name in BEHAVIOURS if f'"{name}"' not in source] == []
