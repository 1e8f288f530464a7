"""Deadlines of `providers/openai_compatible.py`, and what happens when its caller leaves."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from configs.llm.config import LLMSettings
from contracts import errors
from contracts.deadline import Deadline
from contracts.llm.answers import StreamDelta
from contracts.llm.routing import Target
from providers import event_stream
from providers.registry import ProviderResources, ProviderSlots, build_providers
from tests.support.llm.openai_calls import (
    ANSWER,
    BOTH,
    CALM,
    FAST,
    QUESTION,
    SLACK_S,
    assert_leaf,
    call,
    named,
)
from tests.support.llm.proxy import NoEngine
from tests.support.llm.upstream import play

# --- deadlines ---

SILENT = [
    play("silence"),
    play("slow", wait_s=30),
    play("slow_first_token", wait_s=30),
    play("keepalive", interval_s=0.02),
    play("role_only", interval_s=0.02),
    play("drip", interval_s=0.01),
    play("stall", after=0),
    play("stall", after=2),
]
ENDLESS = play("no_done", hold=True, finish_reason=None)  # as a whole answer it would be complete


@pytest.mark.parametrize(
    ("one", "stream"),
    [(ENDLESS, True), *((one, stream) for one in SILENT for stream in (False, True))],
    ids=named,
)
async def test_silence_is_given_up_in_time_and_the_upstream_is_left(
    provider, upstream, one, stream
):
    limit = FAST.first_token_s if stream else FAST.total_s
    upstream.script(one)
    outcome = await call(provider, stream=stream, timeouts=FAST)
    assert_leaf(outcome.error, errors.UpstreamTimeout, upstream)
    assert limit - 0.05 <= outcome.seconds < limit + SLACK_S
    await upstream.wait_for(cancelled=1, timeout_s=30)
    assert upstream.open_calls == 0


async def test_time_between_tokens_counts_from_the_last_token(provider, upstream):
    upstream.script(play("ok", text="слово " * 8, delay_s=0.3))
    patient = replace(FAST, first_token_s=1.0, idle_s=1.0, total_s=60)
    outcome = await call(provider, stream=True, timeouts=patient)
    assert outcome.error is None
    assert outcome.seconds > patient.first_token_s + patient.idle_s


async def test_a_steady_stream_is_bounded_as_a_whole(provider, upstream):
    upstream.script(play("ok", text="слово " * 100, delay_s=0.1))
    outcome = await call(provider, stream=True, timeouts=FAST)
    assert_leaf(outcome.error, errors.UpstreamTimeout, upstream)
    assert FAST.total_s - 0.05 <= outcome.seconds < FAST.total_s + SLACK_S


async def test_usage_that_never_comes_is_not_waited_for_long(provider, upstream, monkeypatch):
    monkeypatch.setattr(event_stream, "USAGE_GRACE_S", 0.2)
    upstream.script(play("no_done", hold=True, usage="missing"))
    outcome = await call(provider, stream=True)
    assert (outcome.error, outcome.text, outcome.usage.estimated) == (None, ANSWER, True)
    assert outcome.seconds < 0.2 + SLACK_S
    await upstream.wait_for(cancelled=1, timeout_s=30)


BUSY = play("ok", text="слово " * 100, delay_s=0.05)


@pytest.mark.parametrize(
    ("one", "stream"),
    [
        (BUSY, True),
        *(
            (one, stream)
            for one in (play("silence"), play("stall", after=1))
            for stream in (False, True)
        ),
    ],
    ids=named,
)
async def test_the_requests_own_deadline_wins_over_longer_timeouts(provider, upstream, one, stream):
    upstream.script(one)
    outcome = await call(provider, stream=stream, deadline_s=0.3)
    assert isinstance(outcome.error, errors.DeadlineExceeded)
    assert outcome.error.status == 504
    assert 0.25 <= outcome.seconds < 0.3 + SLACK_S
    await upstream.wait_for(cancelled=1, timeout_s=30)


@BOTH
@pytest.mark.parametrize("one", [play("http_500", stall=True), play("drip_error")], ids=named)
async def test_a_missing_error_body_delays_no_caller(provider, upstream, one, stream):
    upstream.script(one)
    outcome = await call(provider, stream=stream, timeouts=FAST)
    assert type(outcome.error) in {errors.UpstreamUnavailable, errors.UpstreamTimeout}
    assert outcome.seconds < FAST.total_s + SLACK_S


@BOTH
async def test_a_passed_deadline_ends_the_call_at_once(provider, upstream, stream):
    upstream.script("silence")
    outcome = await call(provider, stream=stream, deadline_s=0)
    assert isinstance(outcome.error, errors.DeadlineExceeded)
    assert outcome.seconds < SLACK_S


@BOTH
async def test_waiting_for_a_pooled_connection_is_bounded(make_provider, upstream, stream):
    provider = make_provider(upstream.base_url, max_connections=1)
    upstream.script("silence")
    hung = asyncio.create_task(call(provider, stream=stream))
    await upstream.wait_for(requests=1)
    outcome = await call(provider, stream=stream, timeouts=FAST)
    assert outcome.error.retryable
    assert outcome.seconds < FAST.total_s + SLACK_S
    assert upstream.total == 1
    hung.cancel()
    await asyncio.gather(hung, return_exceptions=True)


# --- cancellation ---


@BOTH
@pytest.mark.parametrize(
    "one",
    [
        play("silence"),
        play("slow_first_token", wait_s=30),
        play("stall", after=2),
        play("keepalive"),
    ],
    ids=named,
)
async def test_cancelling_the_call_stops_the_upstream(provider, upstream, one, stream):
    upstream.script(one)
    task = asyncio.create_task(call(provider, stream=stream))
    await upstream.wait_for(requests=1)
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await upstream.wait_for(cancelled=1, timeout_s=30)


async def test_closing_the_iterator_stops_the_upstream(provider, upstream):
    upstream.script(play("ok", text="слово " * 200, delay_s=0.02))
    items = provider.stream(QUESTION, Target("openai", "m", CALM), Deadline.after(20))
    assert isinstance(await anext(items), StreamDelta)
    await items.aclose()
    await upstream.wait_for(cancelled=1, timeout_s=30)
    assert upstream.requests[0].frames_sent < 20


async def test_cancelled_calls_give_their_connections_back(make_provider, upstream):
    provider = make_provider(upstream.base_url, max_connections=4)
    upstream.script("silence")
    for _ in range(5):
        tasks = [asyncio.create_task(call(provider, stream=index % 2 == 0)) for index in range(4)]
        await asyncio.sleep(0.03)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    upstream.script("ok")
    outcomes = await asyncio.gather(
        *(call(provider, stream=index % 2 == 0, timeouts=FAST) for index in range(8))
    )
    assert [outcome.text for outcome in outcomes] == [ANSWER] * 8
    assert upstream.open_calls == 0


# --- a reload ---


@BOTH
@pytest.mark.parametrize("more", [0, 1], ids=["as before", "one more"])
async def test_calls_before_and_after_a_reload_stay_within_the_bound_together(
    upstream, stream, more
):
    resources = ProviderResources({}.get, NoEngine())
    before = settings_of(upstream.base_url, max_connections=2)
    (old,) = build_providers(before, resources).values()
    upstream.script("silence")
    hung = [asyncio.create_task(call(old, stream=stream)) for _ in range(2)]
    await upstream.wait_for(requests=2)
    (new,) = build_providers(
        settings_of(upstream.base_url, max_connections=2 + more), resources
    ).values()
    hung += [asyncio.create_task(call(new, stream=stream)) for _ in range(more)]
    await upstream.wait_for(requests=2 + more)
    full = await call(new, stream=stream, timeouts=FAST)
    assert isinstance(full.error, errors.Overloaded)
    assert upstream.total == 2 + more
    hung.pop(0).cancel()
    await upstream.wait_for(cancelled=1)
    upstream.script("ok")
    assert (await call(new, stream=stream)).error is None
    for task in hung:
        task.cancel()
    await asyncio.gather(*hung, return_exceptions=True)
    await old.close()
    await new.close()


async def test_the_count_of_a_provider_that_is_gone_ends_with_its_last_call():
    slots = ProviderSlots()
    limiter = slots.of("gone", 1)
    limiter.acquire_on_behalf_of_nowait("call")
    slots.keep([])
    assert slots.of("gone", 1) is limiter
    limiter.release_on_behalf_of("call")
    slots.keep([])
    assert slots.of("gone", 1) is not limiter


def settings_of(base_url, **settings):
    return LLMSettings.model_validate(
        {
            "providers": {"p": {"base_url": base_url, **settings}},
            "models": {"m": {"provider": "p", "name": "x"}},
        }
    )
