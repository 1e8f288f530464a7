"""Many calls over targets that fail in every way, and callers who leave at any moment.

Nothing leaks, and each call is settled once.
"""

import asyncio
import random
from collections import Counter

import pytest

from tests.support.llm.failover import ANSWER, asking, call_result, calls_in_flight, failing_proxy
from tests.support.llm.upstream import ScriptedUpstream, play

CALLS = 120
FAULTS = [
    "ok",
    "ok",
    "ok",
    "http_500",
    "http_401",
    "http_400",
    "reset_before_headers",
    "html",
    "no_finish_reason",
    play("http_429", retry_after=0.2),
    play("cut", after=0),
    play("cut", after=2),
    play("malformed_chunk", after=1, last=True),
    play("reset_mid_body", after=1),
    play("silence"),
    play("stall", after=2),
    play("keepalive", interval_s=0.05),
    play("ok", delay_s=0.02),
    play("error_in_stream", after=2),
]
MODELS = {
    "chaos": {"provider": "brisk", "name": "first", "fallbacks": ["second", "third"]},
    "chaos-resumed": {
        "provider": "brisk",
        "name": "first",
        "fallbacks": ["second", "third"],
        "stream_recovery": "resume",
    },
}


@pytest.mark.parametrize("seed", [1, 2])
async def test_whatever_happens_every_call_ends_once_and_nothing_is_left(seed):
    dice = random.Random(seed)
    providers = {
        name: {"timeouts": {"connect_s": 5, "first_token_s": 0.4, "idle_s": 0.4, "total_s": 2}}
        for name in ("backup", "vllm")
    }
    circuit = {"failures": 4, "share": 0.5, "calls": 10, "cooldown_s": 0.1, "max_cooldown_s": 0.2}
    async with ScriptedUpstream() as upstream:
        for provider in providers.values():
            provider["base_url"] = upstream.base_url
        async with failing_proxy(upstream, models=MODELS, providers=providers, circuit=circuit) as (
            proxy,
            recorder,
        ):
            for name in ("first", "second", "third"):
                upstream.script(*(dice.choice(FAULTS) for _ in range(400)), model=name)
            calls = [
                asyncio.create_task(
                    one_call(proxy, dice.random(), dice.choice([0, 0.05, 0.3, 60]), dice)
                )
                for _ in range(CALLS)
            ]
            ends = await asyncio.gather(*calls, return_exceptions=True)
            assert not [end for end in ends if isinstance(end, Exception)]
            await upstream.wait_idle(30)
            assert calls_in_flight(proxy) == 0
            settled = Counter(
                event["outcome"] for event in recorder.events if event["event"] == "llm.call"
            )
            assert settled.total() == CALLS
            assert (
                0
                < settled["cancelled"]
                <= sum(isinstance(end, asyncio.CancelledError) for end in ends)
            )
            assert "internal" not in settled
            for result in ends:
                if isinstance(result, asyncio.CancelledError):
                    continue
                assert (result.error is None) == (result.answered_by is not None)
                if result.error is None and (result.end is None or result.end.written_by is None):
                    assert result.text == ANSWER, "nothing truncated is a success"


async def one_call(proxy, chance, patience_s, dice):
    """Makes one call, and leaves it after `patience_s`."""
    await asyncio.sleep(chance)
    request = asking(dice.choice(list(MODELS)))
    task = asyncio.create_task(call_result(proxy, request, stream=chance < 0.6))
    await asyncio.wait([task], timeout=patience_s)
    if not task.done():
        task.cancel()
    return await task
