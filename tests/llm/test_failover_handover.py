"""Handover from a silent provider in time; only real silence counts against its circuit."""

import asyncio

import pytest

from contracts.llm.listings import EngineLoad
from contracts.llm.ports import Condition
from services.llm import attempts, failover
from tests.support.llm.failover import ANSWER, asking, call_result, failing_proxy
from tests.support.llm.proxy import NoEngine
from tests.support.llm.upstream import ScriptedUpstream, play

BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
TOUCHY = {"failures": 1, "cooldown_s": 600, "max_cooldown_s": 600}
SILENT = "upstream_timeout"


def handing_over(seconds=0.3, **more):
    return {
        "m": {
            "provider": "calm",
            "name": "first",
            "fallbacks": ["second"],
            "timeouts": {"handover_s": seconds},
            **more,
        }
    }


def state_of(proxy, model):
    return next(row.circuit.state for row in proxy.models().models if row.id == model)


async def test_the_fallback_is_asked_within_the_callers_own_timeout():
    async with ScriptedUpstream() as upstream, failing_proxy(upstream) as (proxy, _):
        upstream.script("silence", model="first")
        request = asking("calm-guarded", timeout_s=6)
        for result in await asyncio.gather(
            *(call_result(proxy, request, stream=stream) for stream in (False, True))
        ):
            assert (result.error, result.text, result.answered_by, result.outcomes) == (
                None,
                ANSWER,
                "second",
                [SILENT, "ok"],
            )
        await upstream.wait_for(cancelled=2, timeout_s=30)


@BOTH
async def test_without_a_timeout_of_the_callers_the_configured_silence_is_borne(stream):
    async with (
        ScriptedUpstream() as upstream,
        failing_proxy(upstream, models=handing_over()) as (proxy, _),
    ):
        upstream.script("silence", model="first")
        result = await call_result(proxy, asking("m"), stream=stream)
        assert (result.error, result.text, result.answered_by, result.outcomes) == (
            None,
            ANSWER,
            "second",
            [SILENT, "ok"],
        )


QUIET = {"timeouts": {"first_token_handover_s": 0.3}}


@pytest.mark.parametrize(
    "fault",
    ["silence", play("keepalive", interval_s=0.02), play("role_only", interval_s=0.02)],
    ids=str,
)
async def test_a_stream_without_a_first_token_is_handed_over_and_counts_against_its_provider(fault):
    models = {"m": {"provider": "calm", "name": "first", "fallbacks": ["second"], **QUIET}}
    async with (
        ScriptedUpstream() as upstream,
        failing_proxy(upstream, circuit=TOUCHY, models=models) as (proxy, _),
    ):
        upstream.script(fault, model="first")
        result = await call_result(proxy, asking("m"), stream=True)
        assert (result.error, result.text, result.answered_by, result.outcomes) == (
            None,
            ANSWER,
            "second",
            [SILENT, "ok"],
        )
        assert state_of(proxy, "m") == "open"


@pytest.mark.parametrize(
    ("stream", "fallbacks"),
    [(False, ["second"]), (True, [])],
    ids=["whole, guarded", "stream, alone"],
)
async def test_a_whole_answer_and_a_stream_without_a_fallback_have_their_time(stream, fallbacks):
    models = {"m": {"provider": "calm", "name": "first", "fallbacks": fallbacks, **QUIET}}
    async with ScriptedUpstream() as upstream, failing_proxy(upstream, models=models) as (proxy, _):
        upstream.script(play("slow", wait_s=0.6), model="first")
        result = await call_result(proxy, asking("m"), stream=stream)
        assert (result.error, result.text, result.outcomes) == (None, ANSWER, ["ok"])


async def test_a_stream_that_began_is_not_handed_over():
    async with (
        ScriptedUpstream() as upstream,
        failing_proxy(upstream, models=handing_over(1.0)) as (proxy, _),
    ):
        upstream.script(play("ok", delay_s=0.5), model="first")
        result = await call_result(proxy, asking("m"), stream=True)
        assert (result.error, result.text, result.outcomes) == (None, ANSWER, ["ok"])


@BOTH
@pytest.mark.parametrize("alone", ["nobody else", "the other is away", "the other has no key"])
async def test_without_another_ready_target_there_is_no_handover_timeout(alone, stream):
    other = {
        "away": {"provider": "local", "name": "tiny"},
        "keyless": {"provider": "keyless", "name": "x"},
    }
    fallbacks = {
        "nobody else": [],
        "the other is away": ["away"],
        "the other has no key": ["keyless"],
    }[alone]
    models = {**handing_over(0.1, fallbacks=fallbacks), **other}
    keyless = {"keyless": {"base_url": "http://127.0.0.1:9/v1", "api_key_env": "NO_SUCH_KEY"}}
    async with (
        ScriptedUpstream() as upstream,
        failing_proxy(upstream, models=models, providers=keyless) as (proxy, _),
    ):
        upstream.script(play("slow", wait_s=0.6), model="first")
        result = await call_result(proxy, asking("m"), stream=stream)
        assert (result.error, result.text, result.outcomes) == (None, ANSWER, ["ok"])


@BOTH
async def test_a_caller_in_a_hurry_closes_no_provider_to_others(stream):
    async with (
        ScriptedUpstream() as upstream,
        failing_proxy(upstream, circuit=TOUCHY, models=handing_over()) as (proxy, _),
    ):
        upstream.script("silence", model="first")
        for model, fields in (
            ("calm-alone", {"timeout_s": 0.2}),
            ("calm-guarded", {"timeout_s": 0.2}),
            ("m", {}),
        ):
            result = await call_result(proxy, asking(model, **fields), stream=stream)
            assert (result.error is None) or result.error.status == 504
        assert state_of(proxy, "calm-alone") == "closed"


@BOTH
async def test_a_deadline_spent_in_silence_counts_against_the_provider(stream, monkeypatch):
    monkeypatch.setattr(failover, "MIN_SILENCE_S", 0.1)
    models = {"m": {"provider": "calm", "name": "first", "timeouts": {"first_token_s": 0.6}}}
    async with (
        ScriptedUpstream() as upstream,
        failing_proxy(upstream, circuit=TOUCHY, models=models) as (proxy, _),
    ):
        upstream.script("silence", model="first")
        assert (
            await call_result(proxy, asking("m", timeout_s=0.4), stream=stream)
        ).error.status == 504
        assert state_of(proxy, "m") == "open"


async def test_a_stream_that_its_caller_did_not_wait_for_is_no_silence(monkeypatch):
    monkeypatch.setattr(attempts, "silence_counts_s", lambda _: 0.1)
    async with (
        ScriptedUpstream() as upstream,
        failing_proxy(upstream, circuit=TOUCHY) as (proxy, _),
    ):
        upstream.script(play("ok", text="слово " * 400, delay_s=0.05), model="first")
        assert (
            await call_result(proxy, asking("calm-alone", timeout_s=1), stream=True)
        ).error.status == 504
        assert state_of(proxy, "calm-alone") == "closed"


class BusyEngine(NoEngine):
    """An engine that reports its load, and is too busy to answer in time."""

    condition = Condition(
        load=EngineLoad(
            running=16, waiting=40, max_running=16, finished=1, aborted=0, generated_tokens=1
        )
    )

    async def chat(self, body, deadline):
        await asyncio.sleep(60)


async def test_an_engine_that_reports_is_busy_not_silent(monkeypatch):
    monkeypatch.setattr(failover, "MIN_SILENCE_S", 0.1)
    models = {"here": {"provider": "local", "name": "tiny", "timeouts": {"first_token_s": 0.2}}}
    async with (
        ScriptedUpstream() as upstream,
        failing_proxy(upstream, circuit=TOUCHY, models=models, engine=BusyEngine()) as (proxy, _),
    ):
        assert (
            await call_result(proxy, asking("here", timeout_s=0.4), stream=False)
        ).error.status == 504
        assert state_of(proxy, "here") == "closed"


async def test_a_whole_call_that_is_left_or_cut_off_is_not_free():
    async with (
        ScriptedUpstream() as upstream,
        failing_proxy(upstream, retry={"attempts": 1}) as (proxy, recorder),
    ):
        upstream.script("silence", model="first")
        left = asyncio.create_task(call_result(proxy, asking("calm-alone"), stream=False))
        await upstream.wait_for(requests=1, timeout_s=30)
        await asyncio.sleep(0.1)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        for fault in ("cut", "html", "http_500"):
            upstream.script(fault, model="first")
            await call_result(proxy, asking("calm-alone"), stream=False)
        found = [
            (record.outcome, record.completion_tokens > 0, record.prompt_tokens > 0)
            for record in recorder.records
        ]
        invalid = "upstream_invalid_response"
        assert found == [
            ("cancelled", True, True),
            (invalid, True, True),
            (invalid, False, False),
            ("upstream_unavailable", False, False),
        ]
        assert recorder.records[0].completion_tokens >= 5
