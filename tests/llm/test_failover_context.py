"""A request that is too long for a target.

The next target that is known to hold it answers, else the caller gets one clean 400.
"""

import pytest

from configs.llm.config import LLMSettings
from providers.routing import RoutingTable
from tests.support.llm.failover import ANSWER, asking, call_result, calls_in_flight, failing_proxy
from tests.support.llm.upstream import ScriptedUpstream, play

BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
TOO_LONG = "context_length_exceeded"
REFUSALS = [
    play("context_length"),
    play("context_length", style="vllm"),
    play("http_413"),
    play("error_in_stream", after=0, error={"code": "context_length_exceeded"}),
]


def models(*contexts, own=None):
    """`m` is refused; a further target exists for each of `contexts`, the tokens that it holds."""
    known = {
        f"f{place}": {"provider": "backup", "name": f"f{place}", "context_tokens": size}
        for place, size in enumerate(contexts)
    }
    return {
        "m": {"provider": "calm", "name": "first", "fallbacks": list(known), "context_tokens": own},
        **known,
    }


@BOTH
@pytest.mark.parametrize("refusal", REFUSALS, ids=str)
async def test_the_next_target_that_is_known_to_hold_it_answers(refusal, stream):
    if not stream and refusal.name == "error_in_stream":
        return
    async with (
        ScriptedUpstream() as upstream,
        failing_proxy(upstream, models=models(None, 500, 200_000)) as (proxy, recorder),
    ):
        upstream.script(refusal, model="first")
        result = await call_result(proxy, asking("m"), stream=stream)
        assert (result.error, result.text, result.answered_by, result.outcomes) == (
            None,
            ANSWER,
            "f2",
            [TOO_LONG, "ok"],
        )
        assert [call.model for call in upstream.requests] == ["first", "f2"], (
            "who may not hold it is not asked"
        )
        assert (recorder.records[-1].outcome, recorder.records[-1].physical_model) == ("ok", "f2")
        assert next(row.circuit.state for row in proxy.models().models if row.id == "m") == "closed"
        await upstream.wait_idle(30)
        assert calls_in_flight(proxy) == 0


@BOTH
@pytest.mark.parametrize(
    ("contexts", "own", "fields"),
    [
        ((None, None), None, {}),
        ((500,), None, {}),
        ((8_192,), 8_192, {}),
        ((100_000,), None, {"max_tokens": 100_000}),
        ((8_192,), None, {"messages": [{"role": "user", "content": "слово " * 4_000}]}),
    ],
    ids=["unknown", "too small", "no larger", "no room for the answer", "a long prompt"],
)
async def test_without_one_the_caller_gets_one_clean_400(contexts, own, fields, stream):
    async with (
        ScriptedUpstream() as upstream,
        failing_proxy(upstream, models=models(*contexts, own=own)) as (proxy, recorder),
    ):
        upstream.script("context_length", model="first")
        result = await call_result(proxy, asking("m", **fields), stream=stream)
        assert (result.error.type, result.error.status, result.error.retryable, result.text) == (
            TOO_LONG,
            400,
            False,
            "",
        )
        assert upstream.total == 1
        assert recorder.records[-1].outcome == TOO_LONG


@BOTH
async def test_a_target_that_holds_it_but_has_no_key_leaves_the_400(stream):
    keyless = {"keyless": {"base_url": "http://127.0.0.1:9/v1", "api_key_env": "NO_SUCH_KEY"}}
    asked = models(200_000)
    asked["f0"]["provider"] = "keyless"
    async with (
        ScriptedUpstream() as upstream,
        failing_proxy(upstream, models=asked, providers=keyless) as (proxy, _),
    ):
        upstream.script("context_length", model="first")
        assert (await call_result(proxy, asking("m"), stream=stream)).error.status == 400


async def test_a_begun_answer_is_not_started_over_at_another_target():
    asked = models(200_000)
    asked["m"]["stream_recovery"] = "resume"
    async with ScriptedUpstream() as upstream, failing_proxy(upstream, models=asked) as (proxy, _):
        upstream.script(
            play("error_in_stream", after=2, error={"code": "context_length_exceeded"}),
            model="first",
        )
        result = await call_result(proxy, asking("m"), stream=True)
        assert (result.error.type, result.end, upstream.total) == (TOO_LONG, None, 1)


def test_contexts_come_from_the_configuration_the_engine_and_the_price_library():
    openai = {"base_url": "https://api.openai.com/v1"}
    config = LLMSettings.model_validate(
        {
            "providers": {
                "openai": openai,
                "far": {"base_url": "https://far.example/v1"},
                "here": {"type": "local"},
            },
            "models": {
                "known": {"provider": "openai", "name": "gpt-4.1-mini"},
                "said": {"provider": "openai", "name": "gpt-4.1-mini", "context_tokens": 32_000},
                "unknown": {"provider": "far", "name": "gpt-4.1-mini"},
                "engine": {"provider": "here"},
            },
        }
    ).with_local_model("tiny", 4_096)
    found = {
        route.logical_model: route.primary.context_tokens for route in RoutingTable(config).routes()
    }
    assert found.pop("known") >= 1_000_000
    assert found == {"said": 32_000, "unknown": None, "engine": 4_096}
