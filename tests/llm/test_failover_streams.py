"""Answers written by several targets, and callers who leave: all stops, settled once."""

import asyncio

import pytest

from contracts.llm.answers import StreamDelta
from tests.support.llm.failover import ANSWER, asking, call_result, calls_in_flight, failing_proxy
from tests.support.llm.upstream import ScriptedUpstream, play

HALF = play("cut", after=2)
TOOL = {"type": "function", "function": {"name": "find", "parameters": {}}}


def part(text):
    return play("ok", text=text)


async def test_the_parts_are_summed_and_each_is_asked_in_its_dialect():
    async with ScriptedUpstream() as upstream, failing_proxy(upstream) as (proxy, recorder):
        upstream.script(HALF, model="first")
        upstream.script(play("cut", text=" два три", after=1), model="second")
        upstream.script(part(" три"), model="third")
        result = await call_result(
            proxy, asking("calm-resumed", max_tokens=10, temperature=0), stream=True
        )
        assert (result.error, result.text, result.answered_by) == (None, ANSWER, "third")
        assert result.end.written_by == ["calm/first", "backup/second", "vllm/third"]
        assert result.outcomes == ["upstream_invalid_response", "upstream_invalid_response", "ok"]
        assert result.end.usage.completion_tokens == 3 + 2 + 1
        assert result.end.usage.estimated
        first, second, third = (call.body for call in upstream.requests)
        assert (first["max_tokens"], second["max_tokens"], third["max_tokens"]) == (10, 8, 7)
        assert {body["temperature"] for body in (first, second, third)} == {0}
        assert third["messages"] == [
            *first["messages"],
            {"role": "assistant", "content": "Echo: раз два"},
        ]
        assert (third["continue_final_message"], third["add_generation_prompt"]) == (True, False)
        (record,) = recorder.records
        assert (record.outcome, record.provider, record.attempts) == ("ok", "vllm", 3)


@pytest.mark.parametrize("rest", [" два три", "  два три", "два три"])
async def test_a_continuation_is_passed_on_unchanged(rest):
    async with ScriptedUpstream() as upstream, failing_proxy(upstream) as (proxy, _):
        upstream.script(HALF, model="first")
        upstream.script(part(rest), model="second")
        assert (
            await call_result(proxy, asking("calm-resumed"), stream=True)
        ).text == f"Echo: раз{rest}"


async def test_white_space_at_the_break_is_written_once():
    async with ScriptedUpstream() as upstream, failing_proxy(upstream) as (proxy, _):
        upstream.script(play("ok", text="Echo: раз \n", finish_reason="error"), model="first")
        upstream.script(part(" \nдва три"), model="second")
        assert (
            await call_result(proxy, asking("calm-resumed"), stream=True)
        ).text == "Echo: раз \nдва три"
        assert upstream.requests[-1].body["messages"][-2]["content"] == "Echo: раз"


LONG = "Столиця України — Київ, і Дніпро тече крізь нього."
BROKEN_OFF = play("cut", after=5, text=LONG)
WRITTEN = "Столиця України — Київ, і"


REPETITIONS = [
    LONG,
    f"\n{LONG}",
    "України — Київ, і Дніпро тече крізь нього.",
    " Дніпро тече крізь нього.",
]


@pytest.mark.parametrize(
    "anew", REPETITIONS, ids=["all", "all, behind white space", "the end", "nothing"]
)
async def test_text_that_the_next_target_repeats_is_shown_once(anew):
    async with ScriptedUpstream() as upstream, failing_proxy(upstream) as (proxy, _):
        upstream.script(BROKEN_OFF, model="first")
        upstream.script(part(anew), model="second")
        result = await call_result(proxy, asking("calm-resumed"), stream=True)
        assert (result.error, result.text) == (None, LONG)
        assert result.end.written_by == ["calm/first", "backup/second"]


async def test_when_a_continuation_starts_over_the_next_target_finishes_the_answer():
    async with ScriptedUpstream() as upstream, failing_proxy(upstream) as (proxy, recorder):
        upstream.script(BROKEN_OFF, model="first")
        upstream.script(part("Столиця України зветься Києвом."), model="second")
        upstream.script(part(" Дніпро тече крізь нього."), model="third")
        result = await call_result(proxy, asking("calm-resumed"), stream=True)
        assert (result.error, result.text, result.end.written_by) == (
            None,
            LONG,
            ["calm/first", "vllm/third"],
        )
        assert result.outcomes == ["upstream_invalid_response", "upstream_invalid_response", "ok"]
        assert recorder.records[-1].attempts == 3
        await upstream.wait_idle(30)
        assert calls_in_flight(proxy) == 0


@pytest.mark.parametrize(
    "anew",
    ["Столиця України зветься Києвом.", f"Перепрошую! Ось: {LONG}"],
    ids=["other words", "after a remark"],
)
async def test_a_continuation_that_starts_over_is_never_a_success(anew):
    models = {
        "lonely": {
            "provider": "calm",
            "name": "first",
            "stream_recovery": "resume",
            "fallbacks": ["second"],
        }
    }
    circuit = {"failures": 2, "cooldown_s": 600, "max_cooldown_s": 600}
    async with (
        ScriptedUpstream() as upstream,
        failing_proxy(upstream, models=models, circuit=circuit) as (proxy, recorder),
    ):
        upstream.script(BROKEN_OFF, model="first")
        upstream.script(play("ok", text=anew + " слово" * 500, delay_s=0.01), model="second")
        result = await call_result(proxy, asking("lonely"), stream=True)
        assert (result.end, result.error.type, result.error.retryable) == (
            None,
            "upstream_invalid_response",
            True,
        )
        assert "started over" in result.error.message
        assert result.text.startswith(WRITTEN)
        assert LONG not in result.text
        assert [record.outcome for record in recorder.records] == ["upstream_invalid_response"]
        await upstream.wait_for(cancelled=1, timeout_s=30)
        assert calls_in_flight(proxy) == 0
        await call_result(proxy, asking("lonely"), stream=True)
        assert (
            next(row.circuit.state for row in proxy.models().models if row.id == "second")
            == "closed"
        ), "a continuation that starts over does not open the circuit"


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"tools": [TOOL]}, HALF),
        ({"response_format": {"type": "json_object"}}, HALF),
        ({}, play("cut", calls=1, text="", after=1)),
    ],
    ids=["tools", "json", "half a tool call"],
)
async def test_streams_that_cannot_be_continued_end_in_the_error(fields, fault):
    async with ScriptedUpstream() as upstream, failing_proxy(upstream) as (proxy, _):
        upstream.script(fault, model="first")
        result = await call_result(proxy, asking("calm-resumed", **fields), stream=True)
        assert (result.error.type, result.end, upstream.total) == (
            "upstream_invalid_response",
            None,
            1,
        )


async def test_a_break_within_the_reasoning_starts_the_answer_over():
    async with ScriptedUpstream() as upstream, failing_proxy(upstream) as (proxy, _):
        upstream.script(play("cut", reasoning="Спершу подумаю довго.", after=2), model="first")
        result = await call_result(proxy, asking("calm-resumed"), stream=True)
        assert (result.error, result.text, result.end.written_by) == (None, ANSWER, None)
        first, second = (call.body["messages"] for call in upstream.requests)
        assert first == second


async def test_a_target_that_breaks_before_its_first_content_is_passed_over():
    async with ScriptedUpstream() as upstream, failing_proxy(upstream) as (proxy, _):
        upstream.script(HALF, model="first")
        upstream.script("http_500", model="second")
        upstream.script(part(" два три"), model="third")
        result = await call_result(proxy, asking("calm-resumed"), stream=True)
        assert (result.text, result.end.written_by) == (ANSWER, ["calm/first", "vllm/third"])
        assert result.outcomes == [
            "upstream_invalid_response",
            "upstream_unavailable",
            "upstream_unavailable",
            "ok",
        ]


async def test_when_no_target_can_finish_it_the_first_error_is_raised():
    models = {
        "lonely": {
            "provider": "calm",
            "name": "first",
            "stream_recovery": "resume",
            "fallbacks": ["declining"],
        }
    }
    async with (
        ScriptedUpstream() as upstream,
        failing_proxy(upstream, models=models) as (proxy, recorder),
    ):
        upstream.script(HALF, model="first")
        result = await call_result(proxy, asking("lonely"), stream=True)
        assert (result.error.type, result.text, upstream.total) == (
            "upstream_invalid_response",
            "Echo: раз",
            1,
        )
        upstream.script("http_500", model="second")
        upstream.script("http_500", model="third")
        result = await call_result(proxy, asking("calm-resumed"), stream=True)
        assert (result.error.type, result.text) == ("upstream_invalid_response", "Echo: раз")
        assert [record.outcome for record in recorder.records] == ["upstream_invalid_response"] * 2
        assert calls_in_flight(proxy) == 0


async def test_an_answer_whose_time_is_up_is_not_gone_on_with():
    async with ScriptedUpstream() as upstream, failing_proxy(upstream) as (proxy, _):
        upstream.script(play("stall", after=2), model="first")
        result = await call_result(proxy, asking("calm-resumed", timeout_s=0.5), stream=True)
        assert (result.error.status, upstream.total) == (504, 1)


@pytest.mark.parametrize("pieces", [[], [StreamDelta(content="Echo: ")]], ids=["nothing", "half"])
async def test_a_stream_without_an_end_from_its_adapter_is_a_failure(pieces):
    class Forgetful:
        name = "calm"

        def unavailable_reason(self):
            return None

        async def stream(self, *_, **__):
            for piece in pieces:
                yield piece

        async def close(self):
            pass

    async with ScriptedUpstream() as upstream, failing_proxy(upstream) as (proxy, recorder):
        proxy.providers["calm"] = Forgetful()
        result = await call_result(proxy, asking("calm-alone"), stream=True)
        assert (result.end, result.error.type) == (None, "upstream_invalid_response")
        assert [record.outcome for record in recorder.records] == ["upstream_invalid_response"]


# --- callers who leave
# ---------------------------------------------------------------------------------------------

PHASES = [
    ("before headers, whole", "silence", False),
    ("half a body, whole", "stall", False),
    ("before headers", "silence", True),
    ("before the first token", play("slow_first_token", wait_s=60), True),
    ("mid-stream", play("stall", after=2), True),
    ("mid-stream, busy", play("ok", text="слово " * 2000, delay_s=0.01), True),
]


@pytest.mark.parametrize(
    ("fault", "stream"), [phase[1:] for phase in PHASES], ids=[phase[0] for phase in PHASES]
)
async def test_leaving_stops_the_upstream_and_settles_once(fault, stream):
    async with ScriptedUpstream() as upstream, failing_proxy(upstream) as (proxy, recorder):
        upstream.script(fault, model="first")
        task = asyncio.create_task(call_result(proxy, asking("calm-resumed"), stream=stream))
        await upstream.wait_for(requests=1, timeout_s=30)
        await asyncio.sleep(0.1)
        assert calls_in_flight(proxy) > 0
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        await upstream.wait_for(cancelled=1, timeout_s=30)
        assert (upstream.total, upstream.open_calls, calls_in_flight(proxy)) == (1, 0, 0)
        assert [record.outcome for record in recorder.records] == ["cancelled"]


async def test_leaving_while_another_target_takes_over_stops_that_one():
    async with ScriptedUpstream() as upstream, failing_proxy(upstream) as (proxy, recorder):
        upstream.script(HALF, model="first")
        upstream.script("silence", model="second")
        task = asyncio.create_task(call_result(proxy, asking("calm-resumed"), stream=True))
        await upstream.wait_for(requests=2, timeout_s=30)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await upstream.wait_for(cancelled=1, timeout_s=30)
        assert (upstream.total, upstream.open_calls, calls_in_flight(proxy)) == (2, 0, 0)
        (record,) = recorder.records
        assert (record.outcome, record.attempts) == ("cancelled", 2)
        assert record.completion_tokens >= 3 + 1, (
            "what the first part took is accounted for, and that the second target was at it"
        )


async def test_a_caller_that_leaves_between_attempts_stops_them():
    retry = {"attempts": 3, "backoff_s": 30, "max_backoff_s": 30}
    async with (
        ScriptedUpstream() as upstream,
        failing_proxy(upstream, retry=retry) as (proxy, recorder),
    ):
        upstream.script("http_500")
        task = asyncio.create_task(call_result(proxy, asking("calm-guarded"), stream=False))
        await upstream.wait_for(requests=1, timeout_s=30)
        await upstream.wait_idle(30)
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (upstream.total, calls_in_flight(proxy)) == (1, 0)
        assert [record.outcome for record in recorder.records] == ["cancelled"]


async def test_a_stream_that_is_closed_before_it_is_read_is_settled():
    async with ScriptedUpstream() as upstream, failing_proxy(upstream) as (proxy, recorder):
        upstream.script(play("stall", after=2))
        opened = await proxy.open_stream(asking("calm-alone"), "r", credential="anonymous")
        await opened.close()
        await opened.close()
        await upstream.wait_for(cancelled=1, timeout_s=30)
        assert [record.outcome for record in recorder.records] == ["cancelled"]
        assert calls_in_flight(proxy) == 0
