"""The Python executor: real child processes in each tier that this host offers."""

import asyncio
from pathlib import Path

import pytest

from contracts.errors import ConfigurationError
from executors.python.executor import PythonLimits
from executors.python.packages import Packages
from tests.support.tools.executions import definition, execution
from tests.support.tools.sandboxes import SECRET, nothing_survives, python_executor

SUPPORT = str(Path(__file__).parents[2] / "support/tools")


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(SUPPORT)


def tool(function: str, module: str = "hostile_toolbox", **changes):
    return definition(f"{module}:{function}", "python", **{"timeout_s": 30, **changes})


async def test_a_function_gets_its_call_and_nothing_else(tier, events):
    executor = python_executor((tier,), events)
    async with nothing_survives(events):
        outcome = await executor.execute(execution(tool("echo"), {"назва": "Їжак"}))
    assert outcome.ok, outcome
    assert outcome.tier == tier
    assert outcome.result["args"] == {"назва": "Їжак"}
    assert outcome.result["context"] == {
        "agent_id": "agent:sofia",
        "microdao_id": "microdao:7",
        "call_id": "c-1",
    }
    assert outcome.result["environment"] == {}
    assert outcome.result["directory"] == []


async def test_coroutine_functions_run(tier, events):
    outcome = await python_executor((tier,), events).execute(
        execution(tool("echo_async"), {"a": 1})
    )
    assert outcome.result == {"a": 1}, outcome


async def test_the_shipped_tool_runs(tier, events):
    args = {"text": "Кооператив збирає врожай. Врожай великий!"}
    outcome = await python_executor((tier,), events).execute(
        execution(tool("summary_stats", "toolbox.text"), args)
    )
    assert outcome.result["language"] == "uk"
    assert outcome.result["top_words"][0] == {"word": "врожай", "count": 2}


async def test_printing_is_no_result(tier, events):
    assert (
        await python_executor((tier,), events).execute(execution(tool("print_some")))
    ).result == "printed"


async def test_scratch_is_private_bounded_and_gone(tier, events):
    executor = python_executor((tier,), events)
    async with nothing_survives(events):
        outcome = await executor.execute(execution(tool("scratch")))
        full = await executor.execute(execution(tool("scratch"), {"bytes": 8 << 20}))
    if tier == "process":
        assert outcome.error_kind == "upstream"  # this tier writes no file at all
    else:
        assert outcome.result == [10, ["note.txt"]]
    assert not full.ok


async def test_a_secret_is_a_variable_and_redacted_when_it_comes_back(tier, events):
    executor = python_executor((tier,), events)
    secrets = [{"name": "api_key"}]
    async with nothing_survives(events):
        outcome = await executor.execute(execution(tool("secret", secrets=secrets)))
        failure = await executor.execute(execution(tool("secret_error", secrets=secrets)))
        cut = await executor.execute(execution(tool("secret_error", secrets=secrets), {"pad": 260}))
    assert outcome.result == {"length": len(SECRET), "leak": ["[redacted]", {"[redacted]": 1}]}
    assert failure.error == "RuntimeError: cannot log in with [redacted]"
    assert cut.error.endswith("x[redact")


async def test_a_missing_secret_stops_the_call(events):
    outcome = await python_executor(("process",), events).execute(
        execution(tool("echo", secrets=[{"name": "other"}]))
    )
    assert (outcome.error_kind, outcome.attempts) == ("unavailable", 0)
    optional = tool("echo", secrets=[{"name": "other", "required": False}])
    assert (await python_executor(("process",), events).execute(execution(optional))).result[
        "environment"
    ] == {}


@pytest.mark.parametrize(
    ("what", "kind", "error"),
    [
        ("value", "invalid_args", "`due` lies in the past"),
        ("os", "upstream", "FileNotFoundError: No such file"),
        ("path", "upstream", "RuntimeError: cannot read … now"),
        ("key", "upstream", "KeyError: 'x'"),
        ("memory", "upstream", "the tool ran out of the memory it may use"),
        ("exit", "upstream", "SystemExit: 0"),
        ("interrupt", "upstream", "KeyboardInterrupt:"),
    ],
)
async def test_exceptions_become_typed_failures(events, what, kind, error):
    outcome = await python_executor(("process",), events).execute(
        execution(tool("raises"), {"what": what})
    )
    assert (outcome.error_kind, outcome.error, outcome.retryable) == (kind, error, False)


@pytest.mark.parametrize("what", ["set", "nan", "surrogate", "bytes", "key"])
async def test_results_that_are_no_json_are_refused(events, what):
    outcome = await python_executor(("process",), events).execute(
        execution(tool("no_json"), {"what": what})
    )
    assert outcome.error_kind == "invalid_result"


async def test_results_are_bounded_in_size_and_depth(events):
    executor = python_executor(("process",), events)
    small = tool("huge_result", max_result_bytes=1_000)
    assert (await executor.execute(execution(small, {"bytes": 998}))).ok
    assert (await executor.execute(execution(small, {"bytes": 999}))).error_kind == "too_large"
    assert (await executor.execute(execution(tool("deep_result")))).error_kind == "invalid_result"
    large = await executor.execute(execution(tool("huge_result"), {"bytes": 3 << 20}))
    assert len(large.result) == 3 << 20


@pytest.mark.parametrize(
    "target",
    [
        "os:getcwd",
        "toolbox:text",
        "toolbox.text",
        "toolbox.none:x",
        "hostile_toolbox:_hidden",
        "hostile_toolbox:borrowed",
        "../x:y",
        "a:b:c",
    ],
)
async def test_only_functions_of_registered_packages_run(events, target):
    outcome = await python_executor(("process",), events).execute(
        execution(definition(target, "python"))
    )
    assert outcome.error_kind == "unavailable"
    assert not outcome.retryable


@pytest.mark.parametrize("module", ["psutil", "aiohttp", "configs.environment", "tests.conftest"])
async def test_neither_site_packages_nor_the_product_are_importable(tier, events, module):
    outcome = await python_executor((tier,), events).execute(
        execution(tool("imports"), {"module": module})
    )
    assert (outcome.error_kind, outcome.ok) == ("upstream", False)
    assert "ModuleNotFoundError" in (outcome.error or "")


def test_packages_are_checked_when_registered():
    for name in ("nowhere_at_all", "json.tool", "zipimport", "../x"):
        with pytest.raises(ConfigurationError):
            Packages([name])


async def test_children_wait_for_a_slot_within_their_deadline(events):
    executor = python_executor(("process",), events, PythonLimits(max_concurrent=1))
    async with nothing_survives(events):
        first = asyncio.create_task(
            executor.execute(execution(tool("sleep", timeout_s=2), {"seconds": 20}))
        )
        await asyncio.sleep(0.1)
        waiting = await executor.execute(execution(tool("echo"), timeout_s=0.5))
        assert (waiting.error_kind, waiting.retryable, waiting.attempts) == ("unavailable", True, 0)
        assert (await first).error_kind == "timeout"


async def test_many_calls_leave_nothing(host, events):
    executor = python_executor(host.available, events)
    async with nothing_survives(events):
        outcomes = await asyncio.gather(
            *(executor.execute(execution(tool("echo", timeout_s=30), {"n": n})) for n in range(12))
        )
    assert [outcome.result["args"]["n"] for outcome in outcomes] == list(range(12))


# In a mount namespace of its own: an interpreter in a closed home directory is made reachable, then
# the user changes.
async def test_executors_of_two_configurations_share_their_slots(tier, events):
    slots = asyncio.Semaphore(1)
    old, new = (python_executor((tier,), events, slots=slots) for _ in range(2))
    running = asyncio.create_task(old.execute(execution(tool("sleep"), {"seconds": 30})))
    while not slots.locked():
        await asyncio.sleep(0.01)
    outcome = await new.execute(execution(tool("echo"), {}, timeout_s=0.2))
    assert (outcome.error_kind, outcome.retryable) == ("unavailable", True)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert (await new.execute(execution(tool("echo"), {}))).ok
