"""The fault matrix: every fault of upstreams, streaming and not, with and without a fallback.

`first` misbehaves, `second` answers. An upstream that breaks before its first content is invisible
to the caller.
"""

import pytest

from tests.support.llm.failover import ANSWER, asking, call_result, calls_in_flight, failing_proxy
from tests.support.llm.upstream import ScriptedUpstream, play

BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
BROKEN = (
    "upstream_unavailable or upstream_invalid_response"  # a reset is seen as either, by its moment
)
GONE, GARBAGE, SILENT, THROTTLED = (
    "upstream_unavailable",
    "upstream_invalid_response",
    "upstream_timeout",
    "upstream_rate_limited",
)


def named(value):
    return f"{value.name}{dict(value.options) or ''}" if hasattr(value, "options") else ""


def assert_outcomes(found, expected):
    assert len(found) == len(expected), found
    assert all(one in wanted.split(" or ") for one, wanted in zip(found, expected, strict=True)), (
        found
    )


# Of each: the provider by its patience, and how the attempts at `first` end before somebody is
# asked instead.
FAULTS = [
    (play("reset_before_headers"), "calm", [GONE, GONE]),
    (play("close_before_headers"), "calm", [GONE, GONE]),
    (play("reset_mid_body", after=0), "calm", [BROKEN, BROKEN]),
    (play("silence"), "brisk", [SILENT]),
    (play("slow", wait_s=60), "brisk", [SILENT]),
    (play("slow_first_token", wait_s=60), "brisk", [SILENT]),
    (play("keepalive", interval_s=0.02), "brisk", [SILENT]),
    (play("role_only", interval_s=0.02), "brisk", [SILENT]),
    (play("drip", interval_s=0.02), "brisk", [SILENT]),
    (play("cut", after=0), "calm", [GARBAGE, GARBAGE]),
    (play("cut_clean", after=0), "calm", [GARBAGE, GARBAGE]),
    (play("stall", after=0), "brisk", [SILENT]),
    (play("malformed_chunk", after=0, last=True), "calm", [GARBAGE, GARBAGE]),
    (play("error_in_stream", after=0), "calm", [GONE, GONE]),
    (play("html"), "calm", [GARBAGE, GARBAGE]),
    (play("http_429"), "calm", [THROTTLED, THROTTLED]),
    (play("http_429", retry_after=60), "calm", [THROTTLED]),
    (play("http_500"), "calm", [GONE, GONE]),
    (play("http_503", retry_after=60), "calm", [GONE]),
    (play("http_529"), "calm", [GONE, GONE]),
    (play("http_408"), "calm", [SILENT]),
    (play("http_401"), "calm", ["upstream_auth_failed"]),
    (play("http_404"), "calm", ["upstream_misconfigured"]),
    (play("http_429", code="insufficient_quota"), "calm", ["upstream_auth_failed"]),
]


@BOTH
@pytest.mark.parametrize(("fault", "provider", "expected"), FAULTS, ids=named)
async def test_a_fault_before_the_first_content_is_invisible(fault, provider, expected, stream):
    async with ScriptedUpstream() as upstream, failing_proxy(upstream) as (proxy, recorder):
        upstream.script(fault, model="first")
        result = await call_result(proxy, asking(f"{provider}-guarded"), stream=stream)
        assert result.error is None
        assert (result.text, result.answered_by) == (ANSWER, "second")
        assert_outcomes(result.outcomes, [*expected, "ok"])
        calls = [call.model for call in upstream.requests]
        assert calls[-1] == "second"
        if provider == "brisk":  # its time may be up before a busy machine has sent the request
            assert calls[:-1] in ([], ["first"])
        else:
            assert calls[:-1] == ["first"] * len(expected)
        assert (recorder.records[-1].provider, recorder.records[-1].physical_model) == (
            "backup",
            "second",
        )
        assert (
            recorder.records[-1].outcome,
            len([one for one in recorder.events if one["event"] == "llm.call"]),
        ) == ("ok", 1)
        await upstream.wait_idle(30)
        assert calls_in_flight(proxy) == 0


@BOTH
@pytest.mark.parametrize(("fault", "provider", "expected"), FAULTS, ids=named)
async def test_without_another_target_the_last_failure_is_raised(fault, provider, expected, stream):
    async with ScriptedUpstream() as upstream, failing_proxy(upstream) as (proxy, recorder):
        upstream.script(fault, model="first")
        result = await call_result(proxy, asking(f"{provider}-alone", timeout_s=20), stream=stream)
        assert (result.text, result.end) == ("", None)
        assert result.error.type in expected[-1].split(" or ")
        assert result.error.retry_after_s == fault.options.get("retry_after")
        assert [call.model for call in upstream.requests] == ["first"] * len(expected)
        assert recorder.records[-1].outcome == result.error.type
        assert calls_in_flight(proxy) == 0


ONCE = [
    play("reset_before_headers", times=1),
    play("cut", after=0, times=1),
    play("malformed_chunk", after=0, last=True, times=1),
    play("http_500", times=1),
    play("http_429", times=1),
    play("http_429", retry_after=0.5, times=1),
    play("flapping"),
]


@BOTH
@pytest.mark.parametrize("fault", ONCE, ids=named)
async def test_a_transient_failure_is_retried(fault, stream):
    async with ScriptedUpstream() as upstream, failing_proxy(upstream) as (proxy, _):
        upstream.script(fault, model="first")
        result = await call_result(proxy, asking("calm-alone"), stream=stream)
        assert (result.error, result.text, result.answered_by) == (None, ANSWER, "first")
        assert len(result.outcomes) == 2
        assert result.outcomes[-1] == "ok"


@BOTH
async def test_a_flapping_provider_answers_every_call(stream):
    async with ScriptedUpstream() as upstream, failing_proxy(upstream) as (proxy, _):
        upstream.script(play("flapping", down=2, up=1), model="first")
        result = [await call_result(proxy, asking("calm-guarded"), stream=stream) for _ in range(6)]
        assert [one.text for one in result] == [ANSWER] * 6
        assert [one.answered_by for one in result] == ["second", "first"] * 3


@BOTH
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("context_length", "context_length_exceeded"),
        ("content_filter", "content_filtered"),
        ("http_400", "upstream_rejected"),
        ("http_422", "upstream_rejected"),
    ],
)
async def test_a_fault_of_the_request_is_reported_at_once(fault, kind, stream):
    async with ScriptedUpstream() as upstream, failing_proxy(upstream) as (proxy, _):
        upstream.script(fault, model="first")
        result = await call_result(proxy, asking("calm-guarded"), stream=stream)
        assert (result.error.type, result.error.status, result.text) == (kind, 400, "")
        assert upstream.total == 1


@BOTH
@pytest.mark.parametrize(
    "fault",
    [
        play("no_done"),
        play("no_done", hold=True),
        play("keepalive", count=3),
        play("slow", wait_s=0.1),
    ],
    ids=named,
)
async def test_odd_but_complete_answers_are_accepted(fault, stream):
    async with ScriptedUpstream() as upstream, failing_proxy(upstream) as (proxy, _):
        upstream.script(fault, model="first")
        result = await call_result(proxy, asking("calm-guarded"), stream=stream)
        assert (result.error, result.text, result.answered_by, result.outcomes) == (
            None,
            ANSWER,
            "first",
            ["ok"],
        )
        assert not stream or result.end.finish_reason == "stop"


HALF_WAY = [
    (play("reset_mid_body", after=2), "calm", BROKEN),
    (play("cut", after=2), "calm", GARBAGE),
    (play("cut_clean", after=2), "calm", GARBAGE),
    (play("stall", after=2), "watchful", SILENT),
    (play("malformed_chunk", after=2, last=True), "calm", GARBAGE),
    (play("error_in_stream", after=2), "calm", GONE),
    (play("ok", finish_reason="error", text="Echo: раз"), "calm", GARBAGE),
    (play("no_finish_reason", text="Echo: раз"), "calm", GARBAGE),
]


@pytest.mark.parametrize(("fault", "provider", "expected"), HALF_WAY, ids=named)
async def test_a_stream_that_breaks_after_content_is_never_a_success(fault, provider, expected):
    async with ScriptedUpstream() as upstream, failing_proxy(upstream) as (proxy, recorder):
        upstream.script(fault, model="first")
        result = await call_result(proxy, asking(f"{provider}-guarded"), stream=True)
        assert (result.text, result.end) == ("Echo: раз", None)
        assert result.error.type in expected.split(" or ")
        assert upstream.total == 1
        (record,) = recorder.records
        assert (record.outcome, record.physical_model, record.estimated) == (
            result.error.type,
            "first",
            True,
        )
        assert record.completion_tokens == 3, "two pieces of twelve bytes"
        assert calls_in_flight(proxy) == 0


@pytest.mark.parametrize(("fault", "provider", "expected"), HALF_WAY, ids=named)
async def test_a_stream_that_breaks_after_content_is_finished_by_the_next_target(
    fault, provider, expected
):
    async with ScriptedUpstream() as upstream, failing_proxy(upstream) as (proxy, recorder):
        upstream.script(fault, model="first")
        upstream.script(play("ok", text=" два три"), model="second")
        result = await call_result(proxy, asking(f"{provider}-resumed"), stream=True)
        assert result.error is None
        assert (result.text, result.answered_by) == (ANSWER, "second")
        assert result.end.written_by == [f"{provider}/first", "backup/second"]
        assert_outcomes(result.outcomes, [expected, "ok"])
        assert (recorder.records[-1].outcome, result.end.finish_reason) == ("ok", "stop")
        asked = upstream.requests[-1].body["messages"]
        assert (asked[-2], asked[-1]["role"]) == (
            {"role": "assistant", "content": "Echo: раз"},
            "user",
        )
        assert calls_in_flight(proxy) == 0


@BOTH
async def test_a_caller_whose_deadline_passes_gets_a_timeout(stream):
    async with ScriptedUpstream() as upstream, failing_proxy(upstream) as (proxy, _):
        upstream.script("silence")
        result = await call_result(proxy, asking("calm-alone", timeout_s=0.2), stream=stream)
        assert (result.error.status, upstream.total) == (504, 1)


@BOTH
async def test_retry_after_is_waited_for_where_the_other_target_has_no_key(stream):
    keyless = {"keyless": {"base_url": "http://127.0.0.1:9/v1", "api_key_env": "MISSING_API_KEY"}}
    models = {
        "bare": {"provider": "calm", "name": "first", "fallbacks": ["nokey"]},
        "nokey": {"provider": "keyless", "name": "x"},
    }
    async with (
        ScriptedUpstream() as upstream,
        failing_proxy(upstream, providers=keyless, models=models) as (proxy, _),
    ):
        upstream.script(play("http_429", retry_after=0.3, times=1), model="first")
        result = await call_result(proxy, asking("bare"), stream=stream)
        assert (result.text, result.outcomes) == (ANSWER, [THROTTLED, "ok"])


async def test_a_dead_address_is_retried_then_failed_over():
    async with ScriptedUpstream() as upstream:
        dead = {"dead": {"base_url": "http://127.0.0.1:9/v1"}}
        models = {"dead": {"provider": "dead", "name": "x", "fallbacks": ["second"]}}
        async with failing_proxy(upstream, providers=dead, models=models) as (proxy, _):
            for stream in (False, True):
                result = await call_result(proxy, asking("dead"), stream=stream)
                assert (result.text, result.outcomes) == (ANSWER, [GONE, GONE, "ok"])
