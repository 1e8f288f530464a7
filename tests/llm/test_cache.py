"""The response cache and shared runs, as values and tasks."""

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import DeadlineExceeded, InvalidRequest, RateLimited, UpstreamUnavailable
from contracts.llm.answers import ProxyResponse, TokenUsage
from contracts.llm.requests import ProxyRequest
from contracts.llm.routing import Target, Timeouts
from services.llm.cache import ENTRY_BYTES, AnswerCache, cache_key, canonical_body, is_worth_keeping
from services.llm.cached_answers import MAX_TURNS, SingleFlight

ANSWER = ProxyResponse(
    content="Київ", usage=TokenUsage(), provider="p", model_resolved="m", finish_reason="stop"
)
TARGET = Target("p", "m", Timeouts(1, 1, 1, 1))


def request(text="Яка столиця?", microdao="microdao:7", agent="agent:a", extra=None, **fields):
    metadata = {
        "agent_id": agent,
        "microdao_id": microdao,
        "channel_id": fields.pop("channel_id", None),
    }
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        **fields,
    }
    made = ProxyRequest.model_validate({**body, "metadata": metadata})
    made.pass_through(extra or {})
    return made


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
tenants = st.text(
    st.characters(min_codepoint=33, exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12
)
bodies = st.fixed_dictionaries(
    {"text": texts},
    optional={
        "max_tokens": st.integers(1, 3),
        "seed": st.integers(0, 2),
        "stop": texts,
        "extra": st.dictionaries(texts, st.integers(0, 2), max_size=2),
    },
)


@given(bodies, bodies, tenants, tenants)
def test_two_requests_share_a_key_exactly_when_body_and_microdao_are_equal(
    one, other, first, second
):
    same = canonical_body(request(**one)) == canonical_body(request(**other)) and first == second
    assert (
        cache_key(request(**one, microdao=first)) == cache_key(request(**other, microdao=second))
    ) is same


@given(bodies)
def test_caller_deadline_and_order_of_keys_do_not_change_the_cache_key(body):
    key = cache_key(request(**body))
    assert key == cache_key(
        request(**body, agent="agent:b", channel_id="c", timeout_s=3, cache={"ttl_s": 9})
    )
    turned = {name: body[name] for name in reversed(body)}
    assert key == cache_key(request(**turned))


@pytest.mark.parametrize("temperature", [None, 0.1, 1])
def test_only_temperature_zero_is_cached(temperature):
    with pytest.raises(InvalidRequest, match="temperature"):
        cache_key(request(temperature=temperature))


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({}, True),
        ({"finish_reason": "tool_calls"}, True),
        ({"finish_reason": "length"}, True),
        ({"finish_reason": None}, False),
        ({"refusal": "ні"}, False),
        ({"finish_reason": "content_filter"}, False),
        ({"provider": "other"}, False),
        ({"model_resolved": "other"}, False),
    ],
)
def test_which_answers_are_cached(change, kept):
    assert is_worth_keeping(ANSWER.model_copy(update=change), request(max_tokens=5), TARGET) is kept


def test_an_answer_cut_at_an_unrequested_length_is_not_cached():
    cut = ANSWER.model_copy(update={"finish_reason": "length"})
    assert not is_worth_keeping(cut, request(), TARGET)
    assert is_worth_keeping(ANSWER, request(), TARGET)


def test_an_answer_lives_as_long_as_both_sides_allow():
    clock = Clock()
    cache = AnswerCache(1 << 20, clock)
    cache.put(b"k", ANSWER.model_copy(update={"request_id": "r", "latency_ms": 5.0}), ttl_s=10)
    assert cache.get(b"k", 5) == ANSWER
    clock.now += 6
    assert cache.get(b"k", 5) is None
    assert cache.get(b"k", 60) == ANSWER
    clock.now += 4
    assert cache.get(b"k", 60) is None
    assert (len(cache._entries), cache._entries.currsize) == (0, 0)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2_000)), max_size=40))
def test_the_bound_in_bytes_holds_and_recently_used_answers_stay(puts):
    cache = AnswerCache(16_000)
    for key, length in puts:
        cache.put(bytes([key]), ANSWER.model_copy(update={"content": "x" * length}), ttl_s=60)
        assert cache._entries.currsize <= 16_000
        small = length + ENTRY_BYTES + 200 <= 2_000
        assert not small or cache.get(bytes([key]), 60).content == "x" * length
    held = [cache.get(bytes([key]), 60) for key in range(10)]
    assert len(cache._entries) == sum(answer is not None for answer in held)


def test_a_closed_cache_holds_nothing_and_keeps_nothing():
    cache = AnswerCache(1 << 20)
    cache.put(b"k", ANSWER, ttl_s=60)
    cache.close()
    cache.put(b"l", ANSWER, ttl_s=60)
    assert (
        len(cache._entries),
        cache._entries.currsize,
        cache.get(b"k", 60),
        cache.get(b"l", 60),
    ) == (0, 0, None, None)


def test_the_answer_used_longest_ago_goes_first():
    cache = AnswerCache(8 * (ENTRY_BYTES + 500))
    for key in range(40):
        cache.put(bytes([key]), ANSWER, ttl_s=60)
        cache.get(b"\x00", 60)
    assert cache.get(b"\x00", 60) is not None
    assert cache.get(b"\x01", 60) is None


class Calls:
    """Calls that wait until the test releases them."""

    def __init__(self):
        self.begun, self.cancelled = 0, 0
        self.gate = asyncio.Event()
        self.failures = []

    async def __call__(self):
        self.begun += 1
        number = self.begun
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.failures:
            raise self.failures.pop(0)
        return number


async def begin(flights, calls, count, key=b"k"):
    tasks = [asyncio.create_task(flights.run(key, calls)) for _ in range(count)]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


async def test_calls_at_the_same_time_share_one_run():
    flights, calls = SingleFlight(), Calls()
    tasks = await begin(flights, calls, 20)
    other = await begin(flights, calls, 1, b"other")
    calls.gate.set()
    assert sorted(own for _, own in await asyncio.gather(*tasks)) == [False] * 19 + [True]
    assert (await other[0]) == (2, True)
    assert (calls.begun, len(flights._flights)) == (2, 0)


async def test_when_the_leader_leaves_the_others_still_get_their_answer():
    flights, calls = SingleFlight(), Calls()
    leader, *others = await begin(flights, calls, 5)
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    calls.gate.set()
    assert {result for result, _ in await asyncio.gather(*others)} == {1}
    assert (calls.begun, calls.cancelled) == (1, 0)


async def test_when_all_callers_have_left_the_run_is_cancelled_and_the_next_starts_another():
    flights, calls = SingleFlight(), Calls()
    tasks = await begin(flights, calls, 3)
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert (calls.cancelled, len(flights._flights)) == (1, 0)
    (again,) = await begin(flights, calls, 1)
    calls.gate.set()
    assert await again == (2, True)


@pytest.mark.parametrize("error", [RateLimited("x"), DeadlineExceeded("x")])
async def test_a_failure_of_the_leaders_own_hands_over(error):
    flights, calls = SingleFlight(), Calls()
    calls.failures = [error]
    tasks = await begin(flights, calls, 4)
    calls.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results.count(error) == 1
    assert calls.begun == 2


async def test_failures_without_end_reach_everybody_after_a_few_runs():
    flights, calls = SingleFlight(), Calls()
    calls.failures = [DeadlineExceeded("x") for _ in range(50)]
    tasks = await begin(flights, calls, 10)
    calls.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, DeadlineExceeded) for result in results)
    assert calls.begun <= MAX_TURNS


async def test_a_failure_of_the_call_is_everybodys():
    flights, calls = SingleFlight(), Calls()
    calls.failures = [UpstreamUnavailable("x")]
    tasks = await begin(flights, calls, 4)
    calls.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, UpstreamUnavailable) for result in results)
    assert calls.begun == 1
