"""Circuits and spill-over of a whole proxy.

Failing targets are not called, then probed once, and called when they have recovered.
"""

import asyncio
import time
from decimal import Decimal

import pytest

from contracts.errors import Overloaded
from contracts.llm.listings import EngineLoad
from contracts.llm.ports import Condition
from tests.support.llm.failover import ANSWER, asking, call_result, calls_in_flight, failing_proxy
from tests.support.llm.upstream import ScriptedUpstream, play

ONCE = {"attempts": 1}
QUICK = {"failures": 3, "share": 1, "calls": 1000, "cooldown_s": 0.5, "max_cooldown_s": 0.5}
SLOW = {**QUICK, "cooldown_s": 600, "max_cooldown_s": 600}


def circuit_of(proxy, model):
    return next(row.circuit for row in proxy.models().models if row.id == model)


async def opened(proxy, upstream, model="calm-guarded"):
    """Lets `first` fail until its circuit is open."""
    upstream.script("http_500", model="first")
    for _ in range(3):
        await call_result(proxy, asking(model), stream=False)
    assert circuit_of(proxy, model).state in {"open", "half_open"}


async def until_half_open(proxy, model):
    async with asyncio.timeout(30):
        while circuit_of(proxy, model).state != "half_open":
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_failing_target_is_not_called_and_is_listed_as_unavailable(stream):
    async with (
        ScriptedUpstream() as upstream,
        failing_proxy(upstream, circuit=SLOW, retry=ONCE) as (proxy, _),
    ):
        await opened(proxy, upstream)
        before = upstream.counts["http_500"]
        result = await call_result(proxy, asking("calm-guarded"), stream=stream)
        assert (result.text, result.answered_by, result.outcomes) == (
            ANSWER,
            "second",
            ["circuit_open", "ok"],
        )
        assert upstream.counts["http_500"] == before
        row = next(row for row in proxy.models().models if row.id == "calm-alone")
        assert (row.available, row.circuit.state) == (False, "open")
        assert "left alone" in row.reason
        assert 0 < row.circuit.retry_after_s <= 600


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_when_every_circuit_is_open_the_error_says_when_to_retry(stream):
    async with (
        ScriptedUpstream() as upstream,
        failing_proxy(upstream, circuit=SLOW, retry=ONCE) as (proxy, recorder),
    ):
        await opened(proxy, upstream, "calm-alone")
        before = upstream.total
        result = await call_result(proxy, asking("calm-alone"), stream=stream)
        assert (result.error.type, result.error.status, result.error.retryable) == (
            "circuit_open",
            503,
            True,
        )
        assert 500 < result.error.retry_after_s <= 600
        assert upstream.total == before
        assert recorder.events[-1]["outcome"] == "circuit_open"


async def test_one_call_probes_and_closes_the_circuit():
    async with (
        ScriptedUpstream() as upstream,
        failing_proxy(upstream, circuit=QUICK, retry=ONCE) as (proxy, _),
    ):
        await opened(proxy, upstream)
        upstream.script(play("slow", wait_s=0.5), model="first")
        await until_half_open(proxy, "calm-guarded")
        before = upstream.counts["slow"]
        result = await asyncio.gather(
            *(call_result(proxy, asking("calm-guarded"), stream=False) for _ in range(8))
        )
        assert upstream.counts["slow"] == before + 1, "one call alone probes"
        assert sorted(one.answered_by for one in result) == ["first"] + ["second"] * 7
        assert circuit_of(proxy, "calm-guarded").state == "closed"
        upstream.script("ok", model="first")
        assert (await call_result(proxy, asking("calm-guarded"), stream=False)).outcomes == ["ok"]


async def test_a_probe_that_streams_closes_the_circuit_with_its_first_content():
    async with (
        ScriptedUpstream() as upstream,
        failing_proxy(upstream, circuit=QUICK, retry=ONCE) as (proxy, _),
    ):
        await opened(proxy, upstream)
        upstream.script(play("stall", after=1), model="first")
        await until_half_open(proxy, "calm-guarded")
        probe = await proxy.open_stream(asking("calm-guarded"), "r", credential="anonymous")
        assert (probe.target.name, circuit_of(proxy, "calm-guarded").state) == ("first", "closed")
        await probe.close()
        assert calls_in_flight(proxy) == 0


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_cancelled_probe_gives_its_place_to_the_next(stream):
    async with (
        ScriptedUpstream() as upstream,
        failing_proxy(upstream, circuit=QUICK, retry=ONCE) as (proxy, _),
    ):
        await opened(proxy, upstream)
        upstream.script("silence", model="first")
        await until_half_open(proxy, "calm-guarded")
        probe = asyncio.create_task(call_result(proxy, asking("calm-guarded"), stream=stream))
        async with asyncio.timeout(30):
            while not upstream.counts["silence"]:
                await asyncio.sleep(0.01)
        assert (await call_result(proxy, asking("calm-guarded"), stream=stream)).outcomes == [
            "circuit_open",
            "ok",
        ]
        probe.cancel()
        await asyncio.gather(probe, return_exceptions=True)
        upstream.script("ok", model="first")
        assert (await call_result(proxy, asking("calm-guarded"), stream=stream)).outcomes == ["ok"]


async def test_a_vain_probe_leaves_it_open():
    async with (
        ScriptedUpstream() as upstream,
        failing_proxy(upstream, circuit=QUICK, retry=ONCE) as (proxy, _),
    ):
        await opened(proxy, upstream)
        await until_half_open(proxy, "calm-guarded")
        before = upstream.counts["http_500"]
        assert (await call_result(proxy, asking("calm-guarded"), stream=False)).outcomes == [
            "upstream_unavailable",
            "ok",
        ]
        failed_at = time.monotonic()
        later = (await call_result(proxy, asking("calm-guarded"), stream=False)).outcomes
        if time.monotonic() - failed_at < QUICK["cooldown_s"]:
            assert (later, upstream.counts["http_500"]) == (["circuit_open", "ok"], before + 1)


async def test_impatient_callers_and_wrong_requests_open_no_circuit():
    async with (
        ScriptedUpstream() as upstream,
        failing_proxy(upstream, circuit=SLOW, retry=ONCE) as (proxy, _),
    ):
        upstream.script("silence", model="first")
        for stream in (False, True) * 2:
            result = await call_result(proxy, asking("calm-alone", timeout_s=0.1), stream=stream)
            assert result.error.status == 504
        for fault in ("http_400", "context_length", "content_filter", "http_422"):
            upstream.script(fault, model="first")
            assert (
                await call_result(proxy, asking("calm-guarded"), stream=False)
            ).error.status == 400
        assert circuit_of(proxy, "calm-guarded").state == "closed"


async def test_a_provider_that_asks_for_a_rest_gets_it_and_then_everybody_may_call():
    async with (
        ScriptedUpstream() as upstream,
        failing_proxy(upstream, circuit=SLOW, retry=ONCE) as (proxy, _),
    ):
        upstream.script(play("http_429", retry_after=1), model="first")
        started = time.monotonic()
        outcomes = [
            (await call_result(proxy, asking("calm-guarded"), stream=False)).outcomes
            for _ in range(4)
        ]
        if time.monotonic() - started < 1:
            assert outcomes == [["upstream_rate_limited", "ok"], *[["circuit_open", "ok"]] * 3]
            assert upstream.counts["http_429"] == 1, "who throttles is not hammered"
        assert circuit_of(proxy, "calm-guarded").state == "closed"
        upstream.script("ok", model="first")
        async with asyncio.timeout(30):
            while circuit_of(proxy, "calm-guarded").retry_after_s:
                await asyncio.sleep(0.02)
        result = await asyncio.gather(
            *(call_result(proxy, asking("calm-guarded"), stream=False) for _ in range(4))
        )
        assert [one.answered_by for one in result] == ["first"] * 4


# --- spill-over
# --------------------------------------------------------------------------------


class Engine:
    """The Engine port with a load that the test sets; it answers at once."""

    def __init__(self):
        self.condition = Condition("the local engine is still starting: retry")
        self.full = False

    def waits(self, waiting):
        self.condition = Condition(
            load=EngineLoad(
                running=4, waiting=waiting, max_running=4, finished=0, aborted=0, generated_tokens=0
            )
        )

    async def chat(self, body, deadline):
        if self.full:
            raise Overloaded(
                "the queue of the local engine is full: retry shortly", retry_after_s=1
            )
        return {"choices": [{"message": {"content": "here"}, "finish_reason": "stop"}]}

    async def stream(self, body, deadline):
        if self.full:
            raise Overloaded(
                "the queue of the local engine is full: retry shortly", retry_after_s=1
            )
        yield {"choices": [{"delta": {"content": "here"}, "finish_reason": "stop"}]}

    async def awake(self, deadline):
        pass

    async def stats(self):
        return self.condition.load


class Prices:
    """Dollars for any call, by the model's name."""

    def __init__(self, **prices):
        self.prices = prices

    def cost(self, target, usage):
        return Decimal(self.prices[target.name]) if target.name in self.prices else None


SPILLING = {
    "own": {
        "provider": "local",
        "name": "tiny",
        "spill": {"to": ["second", "third", "keyless"], "queue_depth": 8, "return_depth": 2},
    },
    "keyless": {"provider": "keyless", "name": "keyless"},
}
KEYLESS = {"keyless": {"base_url": "http://127.0.0.1:9/v1", "api_key_env": "MISSING_API_KEY"}}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_calls_spill_over_by_price_and_come_back_when_the_queue_has_drained(stream):
    engine, prices = Engine(), Prices(second="2.5", third="0.5", keyless="0.1")
    options = {
        "models": SPILLING,
        "providers": KEYLESS,
        "engine": engine,
        "prices": prices,
        "circuit": SLOW,
    }

    async def who():
        return (await call_result(proxy, asking("own"), stream=stream)).answered_by

    async with ScriptedUpstream() as upstream, failing_proxy(upstream, **options) as (proxy, _):
        assert await who() == "third", "no engine is ready; of those that are, the cheapest"
        found = []
        for waiting in (0, 7, 8, 5, 3, 2, 7):
            engine.waits(waiting)
            found.append(await who())
        assert found == ["tiny", "tiny", "third", "third", "third", "tiny", "tiny"]
        engine.waits(9)
        assert next(row for row in proxy.models().models if row.id == "own").spills_over is True
        upstream.script("http_500", model="third")
        result = await call_result(proxy, asking("own"), stream=stream)
        assert (result.answered_by, result.outcomes) == (
            "second",
            ["upstream_unavailable", "upstream_unavailable", "ok"],
        )
        upstream.script("http_500", model="second")
        assert await who() == "tiny", "a busy engine is better than none"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_full_engine_refuses_and_the_call_spills_over_although_its_last_report_was_calm(
    stream,
):
    engine = Engine()
    engine.waits(0)
    engine.full = True
    async with (
        ScriptedUpstream() as upstream,
        failing_proxy(upstream, models=SPILLING, providers=KEYLESS, engine=engine) as (proxy, _),
    ):
        result = await call_result(proxy, asking("own"), stream=stream)
        assert (result.answered_by, result.outcomes) == ("second", ["overloaded", "ok"])


async def test_a_remote_primary_whose_quota_is_used_up_spills_over():
    models = {
        "bought": {
            "provider": "calm",
            "name": "first",
            "spill": {"to": ["second"], "queue_depth": 1},
        }
    }
    async with ScriptedUpstream() as upstream, failing_proxy(upstream, models=models) as (proxy, _):
        upstream.script(play("http_429", retry_after=200), model="first")
        first = await call_result(proxy, asking("bought"), stream=False)
        assert (first.answered_by, first.outcomes) == ("second", ["upstream_rate_limited", "ok"])
        later = await call_result(proxy, asking("bought"), stream=False)
        assert (later.answered_by, later.outcomes) == ("second", ["ok"])
        assert upstream.counts["http_429"] == 1


def left(remaining, limit=100, kind="tokens"):
    return {
        f"x-ratelimit-remaining-{kind}": str(remaining),
        f"x-ratelimit-limit-{kind}": str(limit),
        f"x-ratelimit-reset-{kind}": "6m0s",
    }


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_calls_spill_over_to_those_who_have_quota_left(stream):
    engine, prices = Engine(), Prices(second="2.5", third="0.5", keyless="0.1")
    options = {"models": SPILLING, "providers": KEYLESS, "engine": engine, "prices": prices}

    async def who():
        return (await call_result(proxy, asking("own"), stream=stream)).answered_by

    async with ScriptedUpstream() as upstream, failing_proxy(upstream, **options) as (proxy, _):
        engine.waits(9)
        upstream.script(play("ok", headers=left(50)), model="third")
        assert [await who(), await who()] == ["third", "third"]
        upstream.script(play("ok", headers=left(4)), model="third")
        assert [await who(), await who()] == ["third", "second"], "the cheapest is nearly used up"
        upstream.script(play("ok", headers=left(0, kind="requests")), model="second")
        assert [await who(), await who()] == ["second", "third"], "a little is more than nothing"


async def test_a_remote_primary_spills_over_before_it_is_throttled():
    models = {
        "bought": {
            "provider": "calm",
            "name": "first",
            "spill": {"to": ["second"], "queue_depth": 1},
        }
    }
    async with ScriptedUpstream() as upstream, failing_proxy(upstream, models=models) as (proxy, _):
        upstream.script(
            play("ok", headers={**left(0), "x-ratelimit-reset-tokens": "400ms"}), model="first"
        )
        first = await call_result(proxy, asking("bought"), stream=False)
        second = await call_result(proxy, asking("bought"), stream=False)
        assert (first.answered_by, second.answered_by, second.outcomes) == (
            "first",
            "second",
            ["ok"],
        )
        upstream.script("ok", model="first")
        await asyncio.sleep(0.5)
        assert (await call_result(proxy, asking("bought"), stream=False)).answered_by == "first"
