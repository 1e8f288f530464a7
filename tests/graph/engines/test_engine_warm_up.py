"""An engine is ready only after it has generated with every kind of request."""

import asyncio
import os
import subprocess
import sys

import pytest

from configs.engines.config import load_engines
from configs.environment import REPOSITORY, read_environment
from contracts.errors import ContextLengthExceeded, EngineUnavailable
from deployments.engines import local_llm
from deployments.engines.local_llm import LocalLLM
from deployments.engines.requests import is_structured
from deployments.engines.warm_up import MAX_CROWD, warm_up_rounds


class RecordedEngine:
    """Replaces the engine's process; each answer waits until the test releases it."""

    dead, unfinished = False, 0

    class counters:  # noqa: N801  # an attribute of the engine
        running = max_model_len = finished = prompt_tokens = generated_tokens = steps = 0

    def __init__(self, _config):
        self.asked, self.at_a_time, self.most = [], 0, 0
        self.gate = asyncio.Event()

    async def start(self):
        pass

    async def complete(self, request):
        self.asked.append(request)
        await self.gate.wait()
        return {}

    async def stream(self, request):
        self.asked.append(request)
        self.at_a_time += 1
        self.most = max(self.most, self.at_a_time)
        await self.gate.wait()
        await asyncio.sleep(0)  # the other requests of its round begin
        yield "{}"
        self.at_a_time -= 1


def replica(settings):
    """The deployment without its Ray parent's start."""
    llm = LocalLLM.__new__(LocalLLM)
    llm._llm_config, llm._settings, llm.engine = (
        None,
        settings,
        None,
    )  # the attributes that the constructor sets before the start
    llm._sampling, llm._structured = settings.default_sampling, settings.structured  # as above
    llm._aborted, llm._warm_up_s = 0, None  # as above
    return llm


async def test_a_replica_is_ready_after_the_last_generation_of_the_warm_up(monkeypatch):
    monkeypatch.setattr(local_llm, "PlainEngine", RecordedEngine)
    settings = load_engines(
        read_environment({"DAARION_CONFIG_DIR": str(REPOSITORY / "configs")})
    ).local_llm
    llm = replica(settings)
    starting = asyncio.create_task(llm.start())
    async with asyncio.timeout(30):
        while llm.engine is None or not llm.engine.asked:
            await asyncio.sleep(0)
    assert (await llm.engine_stats())["ready"] is False
    assert not starting.done()
    llm.engine.gate.set()
    await starting
    asked = llm.engine.asked
    assert (await llm.engine_stats())["ready"] is True
    assert llm.engine.most == settings.engine.max_num_seqs, "every size of a batch"
    assert [request["stream"] for request in asked] == [False] + [True] * (len(asked) - 1)
    assert any(is_structured(request) and "tools" not in request for request in asked)
    assert any(request.get("tool_choice") == "required" for request in asked)
    assert {"seed" in request for request in asked if request["temperature"] > 0} == {
        True,
        False,
    }, "two samplers"
    assert any(len(request["messages"][0]["content"]) > 500 for request in asked)
    assert (asked[-1]["ignore_eos"], asked[-1]["max_tokens"] >= 16) == (True, True), (
        "an answer for one caller alone comes last"
    )


async def test_a_refused_request_or_a_slow_machine_does_not_keep_the_replica_from_being_ready(
    monkeypatch,
):
    class Refusing(RecordedEngine):
        async def complete(self, request):
            return {}

        async def stream(self, request):
            if "response_format" in request:
                raise ContextLengthExceeded("too long")
            if request["messages"][0]["content"] != "Hi":
                await asyncio.sleep(3600)  # a long prompt on a slow machine
            yield "{}"

    monkeypatch.setattr(local_llm, "PlainEngine", Refusing)
    monkeypatch.setattr(local_llm, "WARM_UP_TIMEOUT_S", 0.2)
    llm = replica(
        load_engines(
            read_environment({"DAARION_CONFIG_DIR": str(REPOSITORY / "configs")})
        ).local_llm
    )
    async with asyncio.timeout(30):
        await llm.start()
    assert (await llm.engine_stats())["ready"] is True


async def test_an_engine_whose_first_answer_fails_is_not_ready(monkeypatch):
    class Broken(RecordedEngine):
        async def complete(self, request):
            raise EngineUnavailable("gone")

    monkeypatch.setattr(local_llm, "PlainEngine", Broken)
    llm = replica(
        load_engines(
            read_environment({"DAARION_CONFIG_DIR": str(REPOSITORY / "configs")})
        ).local_llm
    )
    with pytest.raises(EngineUnavailable):
        await llm.start()


@pytest.mark.parametrize("most", [1, 16, 1_000])
def test_the_crowd_passes_through_every_size_of_a_batch_up_to_a_bound(most):
    rounds = warm_up_rounds(max_num_seqs=most, calls_tools=False)
    crowd = max(rounds, key=len)
    assert [body["max_tokens"] for body in crowd] == list(
        range(1, 1 + min(most, MAX_CROWD))
    ) or most == 1
    assert not any("tools" in body for round_ in rounds for body in round_)
    assert sum(body["max_tokens"] for round_ in rounds for body in round_) <= 700, (
        "some seconds on two cores"
    )


SAMPLED = """
import torch
from vllm.v1.sample.ops.topk_topp_sampler import compiled_random_sample
print([compiled_random_sample(torch.zeros(rows, 8)).shape[0] for rows in (1, 2, 3)])
"""


def test_an_answer_at_a_temperature_needs_no_compiler(tmp_path):
    """The image for CPUs has no compiler: the first answer at a temperature must not end or block
    the engine."""
    variables = {
        "TORCH_COMPILE_DISABLE": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        "CXX": "/nowhere/c++",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", SAMPLED],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[1, 2, 3]"
    assert list(tmp_path.iterdir()) == []
