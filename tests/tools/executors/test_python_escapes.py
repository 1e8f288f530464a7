"""Ways around the sandbox: Unix sockets, signals, hidden files, kernel memory and interfaces."""

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest

from executors.python.executor import PythonLimits
from tests.support.tools.executions import definition, execution
from tests.support.tools.sandboxes import attack, nothing_survives, python_executor

SUPPORT = Path(__file__).parents[2] / "support/tools"


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(SUPPORT))


async def escape(tier, events, function, args=None, **changes):
    return await attack(tier, events, function, args, module=".escapes", **changes)


async def test_a_pair_of_sockets_reaches_no_socket_of_the_host(tier, events, tmp_path):
    path = str(tmp_path / "ray.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as victim:
        victim.bind(path)
        victim.setblocking(False)
        assert (await escape(tier, events, "datagrams", {"path": path})).result == []
        with pytest.raises(BlockingIOError):
            victim.recv(10)


async def test_a_granted_network_brings_no_unix_socket_in_a_pair(tier, events, tmp_path):
    tool = definition("hostile_toolbox.escapes:datagrams", "python", network=True, timeout_s=30)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as victim:
        victim.bind(str(tmp_path / "ray.sock"))
        victim.setblocking(False)
        async with nothing_survives(events):
            outcome = await python_executor((tier,), events).execute(
                execution(tool, {"path": str(tmp_path / "ray.sock")})
            )
        assert outcome.result == [], outcome
        with pytest.raises(BlockingIOError):
            victim.recv(10)


async def test_no_process_is_signalled_or_changed_by_way_of_a_descriptor(tier, events):
    received = []
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, received.append, 1)
    try:
        assert (await escape(tier, events, "owned_signals", {"pid": os.getpid()})).result == []
        assert received == []
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR2)


@pytest.mark.parametrize("way", ["unlinked", "replaced", "mapped", "nameless", "preallocated"])
async def test_files_without_a_name_count_as_stored(tier, events, way):
    outcome = await escape(tier, events, "hide", {"way": way})
    assert outcome.error_kind in {"too_large", "upstream"}, outcome
    if tier == "landlock" and way in {"unlinked", "replaced", "mapped"}:
        assert (outcome.error_kind, outcome.error) == (
            "too_large",
            "the tool stored more than its scratch folder may hold",
        )


@pytest.mark.parametrize("way", ["leaderless", "apart"])
async def test_files_of_other_threads_count_as_stored(tier, events, way):
    outcome = await escape(
        tier, events, "hide", {"way": way}, limits={"processes": 8, "memory_mb": 1024}
    )
    assert outcome.error_kind in {"too_large", "upstream"}, outcome
    if tier == "landlock" and way == "leaderless":
        assert (outcome.error_kind, outcome.error) == (
            "too_large",
            "the tool stored more than its scratch folder may hold",
        )


async def test_the_kernel_holds_no_memory_beside_the_bound(tier, events):
    assert (await escape(tier, events, "buffers")).result == []


async def test_sockets_keep_their_buffers_where_a_network_is_granted(tier, events):
    tool = definition(
        "hostile_toolbox.escapes:socket_options", "python", network=True, timeout_s=30
    )
    outcome = await python_executor((tier,), events).execute(execution(tool))
    assert outcome.result == {"lost": [], "open": []}, outcome


async def test_locks_are_granted_without_being_taken(tier, events):
    """The kernel bounds neither their number nor whom they keep from a file."""
    locked = SUPPORT / "hostile_toolbox" / "escapes.py"
    call = asyncio.create_task(escape(tier, events, "locks", {"seconds": 1}))
    while not call.done():
        assert f":{locked.stat().st_ino} " not in Path("/proc/locks").read_text()
        await asyncio.sleep(0.05)
    assert (await call).result == "locked"


async def test_open_files_have_a_ceiling(tier, events):
    executor = python_executor((tier,), events, PythonLimits(most_open_files=40))
    tool = definition(
        "hostile_toolbox.escapes:open_files", "python", limits={"open_files": 60_000}, timeout_s=30
    )
    assert (await executor.execute(execution(tool))).result == 40


async def test_no_other_interface_of_the_kernel_is_reached(tier, events):
    assert (await escape(tier, events, "interfaces")).result == {}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="tables of x86-64")
@pytest.mark.parametrize("table", ["x32", "i386"])
async def test_the_kernels_other_tables_end_the_process(tier, events, table):
    outcome = await escape(tier, events, "other_tables", {"table": table})
    assert "(SIGSYS)" in (outcome.error or "") or (
        table == "i386" and "(SIGSEGV)" in (outcome.error or "")
    ), outcome


async def test_threads_share_one_table_of_descriptors(tier, events):
    assert (await escape(tier, events, "own_tables", limits={"processes": 8})).result == []


async def test_other_processes_are_not_looked_into(host, events):
    for tier in host.available:
        if tier != "process":  # which reads what the service's user reads
            assert (
                await escape(tier, events, "neighbours", {"pids": [os.getpid(), os.getppid()]})
            ).result == []


@pytest.mark.parametrize("threads", [False, True])
async def test_honest_tools_lose_nothing(tier, events, threads):
    limits = {"processes": 8, "memory_mb": 1024} if threads else {}
    args = {"files": tier != "process", "threads": threads}
    assert (await attack(tier, events, "work", args, module=".honest", limits=limits)).result == {}


async def test_honest_tools_with_a_network_lose_nothing(tier, events):
    tool = definition("hostile_toolbox.honest:work", "python", network=True, timeout_s=30)
    outcome = await python_executor((tier,), events).execute(
        execution(tool, {"files": False, "threads": False})
    )
    assert outcome.result == {}, outcome
