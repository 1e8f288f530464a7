"""What a call to a sleeping engine does; questions about it wake nothing. Serve is a fake."""

import asyncio
import time

import pytest

from configs.llm.config import ProviderSettings
from contracts.deadline import Deadline
from contracts.errors import DeadlineExceeded, EngineUnavailable, ModelAsleep
from contracts.health import Check
from contracts.llm.ports import Condition
from contracts.llm.routing import RetryPolicy, Target, Timeouts
from deployments.engines import sleeping
from deployments.engines.chat_models import ChatModel
from deployments.engines.clients import EngineClient
from deployments.engines.sleeping import SleepingEngine, open_engines
from providers.local import LocalProvider
from providers.registry import ProviderResources
from services.health.dependencies import Dependency, HealthMonitor, summarise
from services.llm.failover import decide_failover
from tests.support.llm.proxy import NoEngine

ANSWER = {
    "choices": [{"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1},
}
TARGET = Target("local", "tiny", Timeouts(5, 30, 30, 30))


class Replica:
    """Serve's handle and its state of one model, which needs `start_s` to wake."""

    def __init__(self, state="asleep", start_s=0.3):
        self.state, self.start_s, self.woken, self.looks = state, start_s, 0, 0
        self.calls = []

    async def state_of(self, _application):
        self.looks += 1
        return self.state

    def found(self):
        return self

    @property
    def engine_stats(self):
        return _Method(self.wake)

    @property
    def chat_dict(self):
        return _Method(self.chat)

    async def wake(self):
        self.woken += 1
        await asyncio.sleep(self.start_s)
        self.state = "awake"
        return {
            "ready": True, "max_num_seqs": 1, "running": 0, "waiting": 0, "finished": 0,
            "aborted": 0, "generated_tokens": 0,
        }  # fmt: skip

    async def chat(self, body):
        self.calls.append(body["model"])
        return ANSWER


class _Method:
    def __init__(self, function):
        self.remote = function


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(sleeping, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(sleeping, "POLL_S", 0.05)


def engine_of(replica, when_asleep):
    engine = SleepingEngine("engine-tiny", when_asleep, replica.state_of)
    engine._handle = replica
    return engine


async def ask(engine, deadline_s=5.0):
    resources = ProviderResources({}.get, NoEngine(), engines={"tiny": engine})
    provider = LocalProvider("local", ProviderSettings(type="local"), resources)
    messages = [{"role": "user", "content": "hi"}]
    return await provider.chat(messages, TARGET, Deadline.after(deadline_s))


async def test_a_call_waits_until_the_model_is_awake_and_wakes_it_once():
    replica = Replica()
    engine = engine_of(replica, "wait")
    answers = await asyncio.gather(*(ask(engine) for _ in range(5)))
    assert [answer.content for answer in answers] == ["hi"] * 5
    assert (replica.woken, replica.calls) == (1, ["tiny"] * 5)


async def test_a_call_waits_no_longer_than_its_deadline():
    engine = engine_of(Replica(start_s=60), "wait")
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await ask(engine, deadline_s=0.3)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("when_asleep", "expected"), [("fall_back", EngineUnavailable), ("refuse", ModelAsleep)]
)
async def test_a_call_that_does_not_wait_wakes_the_model_for_the_next(when_asleep, expected):
    replica = Replica(start_s=0.1)
    engine = engine_of(replica, when_asleep)
    with pytest.raises(EngineUnavailable) as refused:
        await ask(engine)
    assert (type(refused.value), refused.value.retry_after_s) == (expected, 15.0)
    assert replica.calls == []
    await asyncio.sleep(0.3)
    assert (await ask(engine)).content == "hi"
    assert replica.woken == 1


async def test_health_and_listings_wake_nothing():
    replica = Replica()
    engine = engine_of(replica, "wait")
    for _ in range(3):
        assert await engine.stats() == "asleep"
        assert engine.condition == Condition()
        await asyncio.sleep(0.06)
    assert replica.woken == 0


async def test_many_questions_ask_serve_once(monkeypatch):
    monkeypatch.setattr(sleeping, "LOOK_EVERY_S", 60)
    replica = Replica("awake")
    engine = engine_of(replica, "wait")
    await asyncio.gather(*(engine.awake(Deadline.after(5)) for _ in range(50)))
    assert (replica.looks, replica.woken) == (1, 0)


@pytest.mark.parametrize("state", ["failed", "absent"])
async def test_a_model_that_cannot_start_is_unavailable_at_once(state):
    engine = engine_of(Replica(state), "wait")
    with pytest.raises(EngineUnavailable):
        await ask(engine)
    with pytest.raises(EngineUnavailable) as found:
        await engine.stats()
    assert engine.condition.not_ready == found.value.message


async def test_a_reload_changes_what_a_call_to_a_sleeper_does_and_keeps_the_others():
    steady = ChatModel(application="engine-a", when_asleep="wait")
    changing = ChatModel(application="engine-b", when_asleep=None)
    before = open_engines({"a": steady, "b": changing}, {})
    after = open_engines(
        {"a": steady, "b": changing.model_copy(update={"when_asleep": "refuse"})}, before
    )
    assert after["a"] is before["a"]
    assert type(before["b"][1]) is EngineClient
    assert type(after["b"][1]) is SleepingEngine


@pytest.mark.parametrize(
    ("error", "action"), [(EngineUnavailable, "next_target"), (ModelAsleep, "raise")]
)
def test_only_a_model_that_falls_back_hands_its_calls_over(error, action):
    decision = decide_failover(
        error("asleep"), tries=1, retry=RetryPolicy(), others=True, remaining_s=60, jitter=0
    )
    assert decision.action == action


def test_a_model_that_sleeps_is_healthy():
    check = Check(state="asleep", required=False, age_s=0, since_s=0)
    assert summarise({"engine:tiny": check}).status == "ready"
    away = check.model_copy(update={"state": "unavailable"})
    assert summarise({"engine:tiny": away}).status == "degraded"


async def test_the_monitor_says_that_a_model_sleeps(events):
    engine = engine_of(Replica(), "wait")
    monitor = HealthMonitor({"engine:tiny": Dependency(engine.stats, required=False)}, events)
    monitor.start()
    async with asyncio.timeout(5):
        while monitor.health().checks["engine:tiny"].state != "asleep":
            await asyncio.sleep(0.02)
    await monitor.close()
    assert monitor.health().status == "ready"
