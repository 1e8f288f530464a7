"""Errors of `providers/openai_compatible.py` for failing upstreams: status, shape, below HTTP."""

from __future__ import annotations

import pytest

from contracts import errors
from contracts.errors import DaarionError
from contracts.llm.routing import Timeouts
from providers import event_stream, openai_compatible
from tests.support.llm.openai_calls import (
    ANSWER,
    BOTH,
    SLACK_S,
    assert_leaf,
    call,
    named,
)
from tests.support.llm.upstream import Play, play
from tests.support.llm.upstream.bodies import WRONG_SHAPES
from tests.support.llm.upstream.sockets import hanging_port, raw_server, refused_port

# --- failures ---

GARBAGE = errors.UpstreamInvalidResponse
BROKEN = (errors.UpstreamInvalidResponse, errors.UpstreamUnavailable)
FAILURES: list[tuple[Play, type[DaarionError], bool]] = [
    (play("http_400"), errors.UpstreamRejected, False),
    (play("http_400", plain=True), errors.UpstreamRejected, False),
    (play("http_401"), errors.UpstreamAuthFailed, False),
    (play("http_402", message="Insufficient Balance"), errors.UpstreamAuthFailed, False),
    (play("http_403"), errors.UpstreamAuthFailed, False),
    (play("http_404"), errors.UpstreamMisconfigured, False),
    (play("http_408"), errors.UpstreamTimeout, True),
    (play("http_409"), errors.UpstreamRejected, False),
    (play("http_413"), errors.ContextLengthExceeded, False),
    (play("http_422"), errors.UpstreamRejected, False),
    (play("http_429"), errors.UpstreamRateLimited, True),
    (play("http_500"), errors.UpstreamUnavailable, True),
    (play("http_500", plain=True), errors.UpstreamUnavailable, True),
    (play("http_500", padding=300_000), errors.UpstreamUnavailable, True),
    (play("http_400", padding=300_000), errors.UpstreamRejected, False),
    (play("http_502"), errors.UpstreamUnavailable, True),
    (play("http_503"), errors.UpstreamUnavailable, True),
    (play("http_504"), errors.UpstreamUnavailable, True),
    (play("http_529"), errors.UpstreamUnavailable, True),
    (play("html", status=502), errors.UpstreamUnavailable, True),
    (play("context_length"), errors.ContextLengthExceeded, False),
    (play("context_length", style="vllm"), errors.ContextLengthExceeded, False),
    (play("context_length", style="vllm_nested"), errors.ContextLengthExceeded, False),
    (play("context_length", style="deepseek"), errors.ContextLengthExceeded, False),
    (play("context_length", style="llama"), errors.ContextLengthExceeded, False),
    (play("content_filter"), errors.ContentFiltered, False),
    (play("content_filter", style="openai"), errors.ContentFiltered, False),
    (play("content_filter", style="deepseek"), errors.ContentFiltered, False),
    (play("reset_before_headers"), errors.UpstreamUnavailable, True),
    (play("close_before_headers"), errors.UpstreamUnavailable, True),
    (play("cut"), GARBAGE, True),
    (play("cut_clean"), GARBAGE, True),
    (play("malformed_chunk", last=True), GARBAGE, True),
    (play("error_in_stream"), errors.UpstreamUnavailable, True),
    (
        play("error_in_stream", after=0, error={"code": "content_filter"}),
        errors.ContentFiltered,
        False,
    ),
    (
        play("error_in_stream", after=0, error={"code": "context_length_exceeded"}),
        errors.ContextLengthExceeded,
        False,
    ),
    (play("error_in_stream", after=0, error={"code": 429}), errors.UpstreamRateLimited, True),
    (play("html"), GARBAGE, True),
    (play("truncated_json"), GARBAGE, True),
    (play("gzip_body", megabytes=40), GARBAGE, True),
    (play("redirect"), GARBAGE, True),
    (play("redirect", status=302), GARBAGE, True),
]
WHOLE_ONLY = {"truncated_json", "gzip_body"}


@pytest.mark.parametrize(
    ("one", "stream", "kind", "retryable"),
    [
        (one, stream, kind, retryable)
        for one, kind, retryable in FAILURES
        for stream in (False, True)
        if not (stream and one.name in WHOLE_ONLY)
    ],
    ids=named,
)
async def test_each_failure_is_its_leaf_and_leaks_nothing(
    provider, upstream, one, stream, kind, retryable
):
    upstream.script(one)
    outcome = await call(provider, stream=stream)
    assert outcome.response is None
    assert outcome.end is None
    assert_leaf(outcome.error, kind, upstream)
    assert outcome.error.retryable is retryable
    assert upstream.total == 1, "an adapter makes one attempt"
    upstream.script("ok")
    assert (await call(provider, stream=stream)).text == ANSWER


@BOTH
async def test_a_reset_in_the_middle_is_never_an_answer(provider, upstream, stream):
    upstream.script("reset_mid_body")
    outcome = await call(provider, stream=stream)
    assert outcome.end is outcome.response is None
    assert type(outcome.error) in BROKEN
    assert_leaf(outcome.error, type(outcome.error), upstream)


@pytest.mark.parametrize("kind", [kind for kind in WRONG_SHAPES if kind != "null_content"])
async def test_json_of_the_wrong_shape_is_refused(provider, upstream, kind):
    upstream.script(play("wrong_shape", kind=kind))
    assert_leaf((await call(provider, stream=False)).error, GARBAGE, upstream)


@pytest.mark.parametrize(
    "kind",
    ["text_choices", "null_choice", "number_content", "list", "string", "null_body", "number"],
)
async def test_events_of_the_wrong_shape_are_no_answer(provider, upstream, kind):
    upstream.script(play("wrong_shape", kind=kind))
    outcome = await call(provider, stream=True)
    assert outcome.text == ""
    assert outcome.end is None or kind == "number_content"


async def test_null_content_is_an_empty_answer(provider, upstream):
    upstream.script(play("wrong_shape", kind="null_content"))
    outcome = await call(provider, stream=False)
    assert (outcome.error, outcome.text, outcome.finish_reason) == (None, "", "stop")


@BOTH
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"city": "Київ"}, '{"city":"Київ"}'),
        (None, "{}"),
        ("", "{}"),
        ("  ", "{}"),
        ({}, "{}"),
        ([7], "[7]"),
    ],
)
async def test_tool_call_arguments_are_returned_as_text(
    provider, upstream, arguments, text, stream
):
    upstream.script(play("tool_calls", arguments=arguments, whole=True))
    outcome = await call(provider, stream=stream)
    assert outcome.error is None
    calls = outcome.fragments if stream else outcome.response.tool_calls
    assert "".join(one["function"]["arguments"] for one in calls).strip() == text


async def test_unreadable_events_are_passed_over_and_counted(provider, upstream):
    upstream.script(play("malformed_chunk", after=1))
    outcome = await call(provider, stream=True)
    assert (outcome.error, outcome.text, outcome.end.unreadable) == (None, ANSWER, 1)
    upstream.script(play("ok"))
    assert (await call(provider, stream=True)).end.unreadable is None


@BOTH
async def test_retry_after_is_carried(provider, upstream, stream):
    upstream.script(
        [
            play("http_429", retry_after=7),
            play("http_503", retry_after_date=60),
            play("http_429", retry_after="soon"),
            "http_429",
        ]
    )
    found = [(await call(provider, stream=stream)).error.retry_after_s for _ in range(4)]
    assert found[0] == 7
    assert 50 < found[1] <= 60
    assert found[2:] == [None, None]


async def test_a_stream_gives_what_came_before_it_broke(provider, upstream):
    for name in ("cut", "reset_mid_body", "malformed_chunk", "error_in_stream", "cut_clean"):
        upstream.script(play(name, after=2, last=True))
        outcome = await call(provider, stream=True)
        assert outcome.text == "Echo: раз", name
        assert outcome.error is not None, name


@BOTH
async def test_a_flapping_upstream_alternates(provider, upstream, stream):
    upstream.script(play("flapping", down=2, up=1))
    found = [(await call(provider, stream=stream)).error for _ in range(4)]
    assert [type(error) for error in found] == [
        errors.UpstreamUnavailable,
        errors.UpstreamUnavailable,
        type(None),
        errors.UpstreamUnavailable,
    ]


@BOTH
async def test_redirects_are_not_followed(provider, upstream, stream):
    upstream.script("redirect")
    await call(provider, stream=stream)
    assert upstream.elsewhere == []


async def test_answers_are_bounded(provider, upstream, monkeypatch):
    for module in (openai_compatible, event_stream):
        monkeypatch.setattr(module, "MAX_ANSWER_BYTES", 8 << 20)
    for stream, options in ((False, {}), (True, {}), (True, {"one_line": True})):
        upstream.reset()
        upstream.script(play("gigantic", megabytes=200, **options))
        outcome = await call(provider, stream=stream)
        assert_leaf(outcome.error, GARBAGE, upstream)
        await upstream.wait_for(cancelled=1)
        assert upstream.requests[0].bytes_sent < 40 << 20


# --- addresses that fail below HTTP ---


@BOTH
async def test_a_refused_connection(make_provider, stream):
    with refused_port() as port:
        outcome = await call(make_provider(f"http://127.0.0.1:{port}/v1"), stream=stream)
        assert_leaf(outcome.error, errors.UpstreamUnavailable)
        assert str(port) not in str(outcome.error)


@BOTH
async def test_an_unknown_host(make_provider, stream):
    outcome = await call(make_provider("http://nowhere.invalid/v1", insecure=True), stream=stream)
    assert_leaf(outcome.error, errors.UpstreamUnavailable)
    assert "nowhere" not in str(outcome.error)


@BOTH
async def test_a_hanging_connection_is_given_up_after_the_connect_timeout(make_provider, stream):
    with hanging_port() as port:
        slow = Timeouts(connect_s=0.3, first_token_s=5, idle_s=5, total_s=5)
        outcome = await call(
            make_provider(f"http://127.0.0.1:{port}/v1"), stream=stream, timeouts=slow
        )
    assert_leaf(outcome.error, errors.UpstreamTimeout)
    assert 0.25 <= outcome.seconds < 0.3 + SLACK_S


@BOTH
@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-nonsense\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/9.9 boo\r\n\r\n",
    ],
)
async def test_nonsense_instead_of_http(make_provider, stream, answer):
    async with raw_server(answer) as port:
        outcome = await call(make_provider(f"http://127.0.0.1:{port}/v1"), stream=stream)
    assert type(outcome.error) in BROKEN
    assert_leaf(outcome.error, type(outcome.error))


@BOTH
async def test_plain_http_where_tls_is_expected(make_provider, upstream, stream):
    outcome = await call(make_provider(upstream.base_url.replace("http:", "https:")), stream=stream)
    assert_leaf(outcome.error, errors.UpstreamUnavailable, upstream)
