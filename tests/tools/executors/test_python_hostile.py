"""Python tools that attack their host, in each tier: a typed result in time, nothing survives."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from executors.python.executor import PythonLimits
from tests.support.tools.executions import definition, execution
from tests.support.tools.sandboxes import (
    SECRET,
    attack,
    children,
    nothing_survives,
    python_executor,
    scratch_folders,
)

SUPPORT = Path(__file__).parents[2] / "support/tools"
ROOT = Path(__file__).parents[3]
DEADLINE_S = 0.8


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(SUPPORT))


@pytest.fixture
def precious(tmp_path):
    """A file as the data folder holds it: readable by the service's user alone."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    file = folder / "services.json"
    file.write_text(SECRET)
    file.chmod(0o600)
    before = (
        file.stat().st_mode,
        file.stat().st_mtime_ns,
        file.stat().st_uid,
        sorted(folder.iterdir()),
    )
    yield file
    assert file.read_text() == SECRET
    assert (
        file.stat().st_mode,
        file.stat().st_mtime_ns,
        file.stat().st_uid,
        sorted(folder.iterdir()),
    ) == before


@pytest.mark.parametrize("function", ["sleep", "sleep_unkillable", "spin"])
async def test_a_tool_that_does_not_end_is_killed_at_the_deadline(tier, events, function):
    outcome = await attack(tier, events, function, timeout_s=DEADLINE_S)
    assert (outcome.error_kind, outcome.retryable) == ("timeout", True)


async def test_cpu_time_is_bounded_apart_from_the_deadline(tier, events):
    started = time.process_time()
    outcome = await attack(tier, events, "spin", limits={"cpu_s": 1})
    assert outcome.error_kind == "timeout"
    assert time.process_time() - started < 5


@pytest.mark.parametrize("function", ["fork_bomb", "thread_bomb", "program"])
async def test_processes_threads_and_programs_cannot_be_started(tier, events, function):
    outcome = await attack(tier, events, function)
    assert outcome.error_kind == "upstream"
    assert any(
        word in outcome.error
        for word in ("PermissionError", "BlockingIOError", "can't start new thread")
    ), outcome.error


@pytest.mark.skipif(
    sys.maxsize < 2**32 or os.uname().machine != "x86_64", reason="numbers of x86-64"
)
async def test_raw_system_calls_fork_nothing(tier, events):
    assert (await attack(tier, events, "raw_fork")).result == [-1, -1, -1, -1]


async def test_threads_can_be_granted_but_no_processes(tier, events):
    assert (
        await attack(tier, events, "thread_bomb", limits={"processes": 64, "memory_mb": 1024})
    ).result > 1
    assert (
        await attack(tier, events, "fork_bomb", limits={"processes": 64})
    ).error_kind == "upstream"


@pytest.mark.parametrize("function", ["allocate", "allocate_slowly"])
async def test_memory_is_bounded(tier, events, function):
    outcome = await attack(tier, events, function)
    assert (outcome.error_kind, outcome.error) == (
        "upstream",
        "the tool ran out of the memory it may use",
    )


async def test_nothing_is_written_outside_the_scratch_folder(tier, events, precious):
    own = SUPPORT / "hostile_toolbox"
    paths = [
        "/daarion-hostile",
        str(ROOT / "daarion-hostile"),
        str(own / "daarion-hostile"),
        str(own / "__init__.py"),
        str(precious),
    ]
    content = (own / "__init__.py").read_bytes()
    assert (await attack(tier, events, "write", {"paths": paths})).result == []
    assert (own / "__init__.py").read_bytes() == content
    assert not any(Path(path).exists() for path in paths[:3])


async def test_nothing_outside_is_changed(tier, events, precious):
    assert (await attack(tier, events, "tamper", {"path": str(precious)})).result == []
    own = str(SUPPORT / "hostile_toolbox" / "__init__.py")
    before = Path(own).stat()
    assert (await attack(tier, events, "tamper", {"path": own})).result == []
    assert Path(own).stat()[:9] == before[:9]


async def test_the_data_folder_and_the_products_files_cannot_be_read(host, events, precious):
    files = [
        str(precious),
        str(ROOT / "pyproject.toml"),
        "/etc/passwd",
        f"/proc/{os.getpid()}/environ",
        f"/proc/{os.getppid()}/cmdline",
    ]
    folders = [
        str(precious.parent),
        str(ROOT),
        str(ROOT / "configs"),
        str(ROOT / ".data"),
        "/home",
        "/etc",
        "/var",
    ]
    for tier in host.available:
        if tier == "process":
            continue
        opened = (await attack(tier, events, "read", {"paths": [*files, *folders]})).result
        # Bubblewrap makes the way to what it shows: folders with nothing else in them.
        assert [
            path for path in opened if tier == "landlock" or path not in {str(ROOT), "/etc"}
        ] == []


async def test_memory_backed_files_are_bounded_too(tier, events):
    assert (await attack(tier, events, "fill_memory_files")).result == []


@pytest.mark.parametrize("function", ["fill_scratch", "many_files"])
async def test_scratch_is_bounded(tier, events, function):
    outcome = await attack(tier, events, function)
    assert not outcome.ok
    if tier == "landlock":
        assert outcome.error_kind == "too_large"


async def test_no_socket_of_any_family_opens(tier, events):
    assert (await attack(tier, events, "families")).result == []


async def test_neither_tcp_nor_unix_sockets_are_reached(tier, events, tmp_path):
    reached = 0

    async def count(_reader, writer):
        nonlocal reached
        reached += 1
        writer.close()

    path = str(tmp_path / "ray.sock")
    async with (
        await asyncio.start_server(count, "127.0.0.1", 0) as tcp,
        await asyncio.start_unix_server(count, path),
    ):
        for address in (list(tcp.sockets[0].getsockname()), path, "\0abstract"):
            assert (
                await attack(tier, events, "connect", {"address": address})
            ).error_kind == "upstream"
    assert reached == 0


async def test_a_granted_network_opens_ip_but_no_unix_socket(tier, events, tmp_path):
    executor = python_executor((tier,), events)
    path = str(tmp_path / "ray.sock")

    async def close(_reader, writer):
        writer.close()

    async with (
        await asyncio.start_server(close, "127.0.0.1", 0) as tcp,
        await asyncio.start_unix_server(close, path),
        nothing_survives(events),
    ):
        for address, connects in ((list(tcp.sockets[0].getsockname()), True), (path, False)):
            tool = definition(
                "hostile_toolbox:connect", "python", network=True, effect="write", timeout_s=30
            )
            outcome = await executor.execute(execution(tool, {"address": address}))
            assert outcome.ok is connects, outcome
            assert outcome.effect_possible is not connects


async def test_nothing_is_left_in_the_kernel(tier, events):
    assert (await attack(tier, events, "shared_memory")).result == [-1, -1, -1]


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86-64")
async def test_privileged_interfaces_are_closed(tier, events):
    assert (await attack(tier, events, "kernel")).result == []


async def test_other_processes_are_not_signalled(tier, events):
    pids = [os.getpid(), os.getppid(), 1]
    assert (await attack(tier, events, "signals", {"pids": pids})).result == []


async def test_printing_without_end_is_cut_off(tier, events):
    outcome = await attack(tier, events, "print_without_end")
    assert (outcome.error_kind, outcome.error) == ("too_large", "the tool printed more than it may")


@pytest.mark.parametrize("how", ["exit", "crash", "abort", "recursion"])
async def test_processes_that_die_are_reported(tier, events, how):
    outcome = await attack(tier, events, "dies", {"how": how}, limits={"memory_mb": 96})
    assert outcome.error_kind == "upstream"
    assert "ended without a result" in outcome.error or how == "recursion"


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("garbage", "invalid_result"),
        ("kind", "upstream"),
        ("endless", "upstream"),
        ("short", "upstream"),
    ],
)
async def test_forged_frames_are_only_the_tools_word(tier, events, what, kind):
    outcome = await attack(tier, events, "forge", {"what": what})
    assert outcome.error_kind == kind
    if what == "kind":
        assert outcome.error == "see … at …"


async def test_exit_handlers_do_not_hold_the_answer(tier, events):
    started = time.monotonic()
    assert (await attack(tier, events, "loops_at_exit")).result == "done"
    assert time.monotonic() - started < 25


@pytest.mark.parametrize("value", [2**70, "\ud800"])
async def test_arguments_without_a_json_form_are_refused(tier, events, value):
    assert (await attack(tier, events, "echo", {"value": value})).error_kind == "invalid_args"


@pytest.mark.parametrize("function", ["sleep", "spin"])
async def test_a_caller_that_leaves_kills_the_child(tier, events, function):
    executor = python_executor((tier,), events, PythonLimits(max_concurrent=1))
    async with nothing_survives(events):
        before = children()
        tool = definition(f"hostile_toolbox:{function}", "python", timeout_s=60)
        task = asyncio.create_task(executor.execute(execution(tool)))
        async with asyncio.timeout(60):
            while not children() - before:
                await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not children() - before
        assert (
            await executor.execute(execution(definition("hostile_toolbox:echo", "python")))
        ).ok  # its slot is free again


RUNNER = """
import asyncio, sys
sys.path.insert(0, {support!r})
from tests.support.events import RecordedEvents
from tests.support.tools.executions import definition, execution
from tests.support.tools.sandboxes import python_executor
tool = definition("hostile_toolbox:{function}", "python", timeout_s=60)
asyncio.run(python_executor(({tier!r},), RecordedEvents()).execute(execution(tool)))
"""


async def test_children_die_with_a_killed_runner_and_their_folder_goes_with_the_next(tier, events):
    before = children()
    code = RUNNER.format(support=str(SUPPORT), function="sleep_unkillable", tier=tier)
    runner = await asyncio.create_subprocess_exec(sys.executable, "-c", code, cwd=ROOT)
    async with asyncio.timeout(60):
        while not children(runner.pid) - before:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.15)
    runner.send_signal(signal.SIGKILL)
    await runner.wait()
    async with asyncio.timeout(30):
        while children() - before:
            await asyncio.sleep(0.02)
    left = [folder for folder in scratch_folders() if f"-{runner.pid}-" in folder]
    assert len(left) == 1
    python_executor((tier,), events)
    assert not Path(left[0]).exists()
