"""How streams of `providers/openai_compatible.py` end: whose usage is billed, what is waited for,
and that connections are reused.
"""

from __future__ import annotations

import asyncio

import pytest

from contracts import errors
from contracts.deadline import Deadline
from contracts.llm.answers import StreamEnd
from contracts.llm.routing import Target, Timeouts
from providers import event_stream, held_calls
from tests.support.llm.openai_calls import ANSWER, BOTH, CALM, QUESTION, assert_leaf, call, named
from tests.support.llm.upstream import play


def frame(content=None, *, finish_reason=None, usage=None, **delta):
    choice = {"index": 0, "delta": {"content": content, **delta}, "finish_reason": finish_reason}
    return {"choices": [choice], "usage": usage}


def counted(completion, prompt=10, **more):
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        **more,
    }


END_USAGE = {"choices": [], "usage": counted(40)}
STREAMS = {
    "usage first, then at the end": (
        [frame("один", usage=counted(0)), frame("два"), frame(finish_reason="stop"), END_USAGE],
        40,
        None,
    ),
    "usage beside the finish reason": (
        [frame("один"), frame(finish_reason="stop", usage=counted(40))],
        40,
        None,
    ),
    "usage with every piece but the end": (
        [frame("a" * 8, usage=counted(5)), frame(finish_reason="stop")],
        5,
        None,
    ),
    "usage first only": (
        [frame("", usage=counted(0)), frame("a" * 8), frame(finish_reason="stop")],
        2,
        True,
    ),
    "usage half-way": (
        [frame("a" * 8, usage=counted(5)), frame("b" * 8), frame(finish_reason="stop")],
        7,
        True,
    ),
    "a total of nothing": (
        [frame("один"), frame(finish_reason="stop"), {"usage": counted(40) | {"total_tokens": 0}}],
        40,
        None,
    ),
}


@pytest.mark.parametrize(("chunks", "completion", "estimated"), STREAMS.values(), ids=STREAMS)
async def test_the_usage_of_the_whole_answer_is_billed(
    provider, upstream, chunks, completion, estimated
):
    upstream.script(play("chunks", chunks=chunks))
    usage = (await call(provider, stream=True)).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (
        10,
        completion,
        10 + completion,
    )
    assert usage.estimated is estimated


@BOTH
async def test_a_total_that_is_less_than_its_parts_is_their_sum(provider, upstream, stream):
    upstream.script(
        play("ok", usage_fields={"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 0})
    )
    assert (await call(provider, stream=stream)).usage.total_tokens == 10
    upstream.script(
        play("ok", usage_fields={"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 25})
    )
    assert (await call(provider, stream=stream)).usage.total_tokens == 25, (
        "some count hidden reasoning in the total alone"
    )


async def test_keep_alives_after_the_finish_reason_delay_no_caller(provider, upstream, monkeypatch):
    monkeypatch.setattr(event_stream, "USAGE_GRACE_S", 0.3)
    upstream.script(play("no_done", usage="missing", beat_s=0.05))
    async with asyncio.timeout(30):
        outcome = await call(provider, stream=True, timeouts=Timeouts(5, 60, 60, 60))
    assert (outcome.error, outcome.text, outcome.usage.estimated) == (None, ANSWER, True)
    await upstream.wait_for(cancelled=1, timeout_s=30)


@pytest.mark.parametrize("whole", [False, True], ids=["stream", "whole answer read as a stream"])
async def test_connections_of_finished_streams_are_reused(
    make_provider, upstream, monkeypatch, whole
):
    monkeypatch.setattr(held_calls, "DRAIN_S", 30)
    provider = make_provider(upstream.base_url, stream_whole_answers=True)
    upstream.script(play("ok", end_pause_s=0.005))
    for _ in range(20):
        assert (await call(provider, stream=not whole)).text == ANSWER
        await upstream.wait_idle(timeout_s=30)
        await asyncio.sleep(0.02)
    assert len({request.peer_port for request in upstream.requests}) <= 2
    assert upstream.open_calls == 0


async def test_the_end_of_the_body_does_not_delay_the_last_event(provider, upstream, monkeypatch):
    monkeypatch.setattr(held_calls, "DRAIN_S", 60)
    upstream.script(play("ok", end_pause_s=60))
    async with asyncio.timeout(30):
        items = [
            item
            async for item in provider.stream(
                QUESTION, Target("openai", "m", CALM), Deadline.after(20)
            )
        ]
        assert isinstance(items[-1], StreamEnd)
        await provider.close()
    await upstream.wait_for(cancelled=1, timeout_s=30)


async def test_a_body_without_an_end_is_left(provider, upstream):
    upstream.script(play("ok", end_pause_s=60))
    assert (await call(provider, stream=True)).text == ANSWER
    await upstream.wait_for(cancelled=1, timeout_s=30)
    assert upstream.open_calls == 0


@BOTH
async def test_a_provider_whose_connections_are_all_in_use_is_not_to_blame(
    make_provider, upstream, stream
):
    provider = make_provider(upstream.base_url, max_connections=1)
    upstream.script("silence")
    hung = asyncio.create_task(call(provider, stream=stream))
    await upstream.wait_for(requests=1)
    outcome = await call(
        provider,
        stream=stream,
        timeouts=Timeouts(connect_s=0.2, first_token_s=10, idle_s=10, total_s=10),
    )
    assert_leaf(outcome.error, errors.Overloaded, upstream)
    late = await call(provider, stream=stream, deadline_s=0.05)
    assert isinstance(late.error, errors.DeadlineExceeded)
    assert upstream.total == 1
    hung.cancel()
    await asyncio.gather(hung, return_exceptions=True)
    upstream.script("ok")
    assert (await call(provider, stream=stream)).text == ANSWER


# --- values ---


@pytest.mark.parametrize("read_as_stream", [False, True])
@pytest.mark.parametrize(
    ("id_chars", "name_chars", "argument_chars", "fits"),
    [(1_024, 8, 2, True), (1_025, 8, 2, False), (8, 257, 2, False), (8, 8, 1_200_001, False)],
)
async def test_a_tool_call_over_our_bounds_is_the_providers_fault(
    make_provider, upstream, read_as_stream, id_chars, name_chars, argument_chars, fits
):
    provider = make_provider(upstream.base_url, stream_whole_answers=read_as_stream)
    call_of = {
        "id": "i" * id_chars,
        "type": "function",
        "function": {"name": "n" * name_chars, "arguments": "1" * argument_chars},
    }
    whole = {
        "choices": [
            {"message": {"content": None, "tool_calls": [call_of]}, "finish_reason": "tool_calls"}
        ]
    }
    chunks = [frame(tool_calls=[{"index": 0, **call_of}]), frame(finish_reason="tool_calls")]
    upstream.script(play("chunks", chunks=chunks, whole=whole))
    outcome = await call(provider, stream=False)
    if fits:
        assert outcome.response.tool_calls == [call_of]
    else:
        assert_leaf(outcome.error, errors.UpstreamInvalidResponse, upstream)


@pytest.mark.parametrize("fragments", [["text"], [7], [None]])
async def test_tool_call_fragments_that_are_none_are_refused(provider, upstream, fragments):
    upstream.script(
        play("chunks", chunks=[frame(tool_calls=fragments), frame(finish_reason="stop")])
    )
    assert_leaf((await call(provider, stream=True)).error, errors.UpstreamInvalidResponse, upstream)


MODERATED = [
    play(
        "http_403", message="openai/gpt-4 requires moderation. Your input was flagged for violence."
    ),
    play("http_403", message="Refused", code="content_policy_violation"),
]
BARRED = [
    play("http_403"),
    play("http_403", message="Your account was flagged for abuse."),
    play("http_403", message="Project not allowed"),
]


@pytest.mark.parametrize(
    ("one", "kind"),
    [
        *((one, errors.ContentFiltered) for one in MODERATED),
        *((one, errors.UpstreamAuthFailed) for one in BARRED),
    ],
    ids=named,
)
async def test_a_403_about_the_content_is_the_callers(provider, upstream, one, kind):
    upstream.script(one)
    assert_leaf((await call(provider, stream=False)).error, kind, upstream)
