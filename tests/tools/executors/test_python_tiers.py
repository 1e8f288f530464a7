"""The isolation tiers: which one runs, which a host offers, and what it does not believe."""

import asyncio
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from contracts.tools.api import ISOLATION_TIERS
from executors.python import launch, process, seccomp, tiers
from executors.python.child import landlock
from executors.python.executor import PythonToolExecutor
from executors.python.packages import Packages
from executors.python.tiers import HostTiers, probe_tiers
from tests.support.tools.executions import Secrets, definition, execution
from tests.support.tools.sandboxes import python_executor

SUPPORT = str(Path(__file__).parents[2] / "support/tools")


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(SUPPORT)


def tool(function: str, module: str = "hostile_toolbox", **changes):
    return definition(f"{module}:{function}", "python", **{"timeout_s": 30, **changes})


@pytest.mark.parametrize(
    ("weakest", "chosen"), [("process", "bubblewrap"), ("bubblewrap", "bubblewrap")]
)
def test_the_strongest_tier_is_taken(weakest, chosen):
    assert HostTiers(ISOLATION_TIERS).choose(weakest) == chosen
    assert HostTiers(("process", "landlock")).choose("process") == "landlock"
    assert HostTiers(("process",)).choose("landlock") is None


async def test_a_tool_that_demands_more_than_the_host_has_is_refused(events):
    executor = python_executor(("process",), events)
    for demanded in ("landlock", "bubblewrap"):
        outcome = await executor.execute(execution(tool("echo", isolation=demanded)))
        assert (outcome.error_kind, outcome.retryable, outcome.attempts) == (
            "unavailable",
            False,
            0,
        )
        assert f"`{demanded}`" in (outcome.error or "")


def test_the_floor_binds_every_tool():
    host = HostTiers(("process", "landlock"))
    assert host.choose("auto", "landlock") == host.choose("process", "landlock") == "landlock"
    assert host.choose("bubblewrap", "landlock") is None
    weak = HostTiers(("process",))
    assert weak.choose("auto", "landlock") is weak.choose("process", "landlock") is None
    assert weak.choose("auto", "process") == "process"


async def test_a_host_below_the_floor_refuses_and_says_why(events):
    executor = PythonToolExecutor(
        Packages(["hostile_toolbox"]), HostTiers(("process",)), Secrets(), events
    )
    for accepted in ("auto", "process"):
        outcome = await executor.execute(execution(tool("echo", isolation=accepted)))
        assert (outcome.error_kind, outcome.retryable, outcome.attempts) == (
            "unavailable",
            False,
            0,
        )
        assert "Python tools demand the isolation tier `landlock`" in (outcome.error or "")


async def test_rules_that_cannot_be_enforced_are_not_ignored(events):
    outcome = await python_executor(("process",), events).execute(
        execution(tool("echo", network=True, egress=[{"host": "a.example"}]))
    )
    assert outcome.error_kind == "unavailable"


def test_no_tier_is_lost_that_the_kernel_has(host):
    """Otherwise a broken sandbox would only skip the other tests."""
    bare = ["bwrap", "--unshare-all", "--cap-add", "CAP_SYS_ADMIN", "--ro-bind", "/", "/", "true"]
    expected = ["process"]
    if landlock.version() >= landlock.MINIMUM_ABI:
        expected.append("landlock")
    if (
        shutil.which("bwrap")
        and subprocess.run(bare, check=False, capture_output=True, timeout=20).returncode == 0
    ):
        expected.append("bubblewrap")
    assert [*host.available] == expected, host.refusals


async def test_no_tier_is_lost_where_temporary_files_lie_behind_a_link(monkeypatch, tmp_path, host):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "link"))
    assert await probe_tiers() == host


async def test_a_host_without_bubblewrap_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    found = await probe_tiers(("bubblewrap",))
    assert found.available == ()
    assert "not installed" in found.refusals["bubblewrap"]
    assert found.refusals["landlock"] == "switched off by configuration"


async def test_a_bubblewrap_that_isolates_nothing_is_not_believed(monkeypatch, tmp_path):
    fake = tmp_path / "bwrap"
    fake.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\ncd /\nexec "$@"\n')
    fake.chmod(0o755)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(launch, "SCRATCH_IN_BUBBLEWRAP", str(tmp_path / "scratch"))
    monkeypatch.setattr(launch, "bubblewrap", lambda: str(fake))
    monkeypatch.setattr(tiers, "bubblewrap", lambda: str(fake))
    found = await probe_tiers(("bubblewrap",))
    assert found.available == ()
    # An ordinary user may not mount the scratch folder outside a namespace.
    assert ("reading" if os.getuid() == 0 else "cannot be set up") in found.refusals["bubblewrap"]


async def test_a_filter_that_lets_everything_through_is_not_believed(monkeypatch, host):
    if "landlock" not in host.available:
        pytest.skip(host.refusals["landlock"])
    monkeypatch.setattr(
        seccomp, "compiled", lambda **_granted: struct.pack("HBBI", 6, 0, 0, seccomp.ALLOW)
    )
    found = await probe_tiers(("landlock",))
    assert found.available == ()
    let_through = found.refusals["landlock"].partition(": ")[2].split(", ")
    assert {
        "processes",
        "datagram_pairs",
        "owners",
        "shared_memory",
        "nameless_files",
        "interfaces",
    } <= set(let_through)


@pytest.mark.parametrize("grant", ["threads", "network"])
async def test_each_of_the_filters_variants_is_tried(monkeypatch, host, grant):
    """One that is too wide where more is granted is found, although the narrow one holds."""
    if "landlock" not in host.available:
        pytest.skip(host.refusals["landlock"])
    compiled, everything = seccomp.compiled, struct.pack("HBBI", 6, 0, 0, seccomp.ALLOW)
    monkeypatch.setattr(
        seccomp, "compiled", lambda **granted: everything if granted[grant] else compiled(**granted)
    )
    found = await probe_tiers(("landlock",))
    assert found.available == ()
    let_through = found.refusals["landlock"].partition(": ")[2].split(", ")
    assert {"processes", "own_tables", "socket_buffers", "interfaces"} <= set(let_through)


async def test_only_a_scratch_folder_on_disk_is_watched(tier, events):
    call = asyncio.create_task(
        python_executor((tier,), events).execute(execution(tool("sleep"), {"seconds": 1}))
    )
    running = set()
    while not call.done():
        running |= {task.get_coro().__name__ for task in asyncio.all_tasks()}
        await asyncio.sleep(0.05)
    assert ("_watch_scratch" in running) is (tier == "landlock")
    assert (await call).ok


async def test_a_runner_that_counts_no_hidden_files_offers_no_landlock(monkeypatch, host):
    if "landlock" not in host.available:
        pytest.skip(host.refusals["landlock"])
    monkeypatch.setattr(process, "stored", lambda *_: 0)
    found = await probe_tiers(("landlock",))
    assert found.refusals["landlock"] == "the self-test was not stopped: hidden_files"


async def test_a_host_without_the_filters_library_says_so(monkeypatch):
    monkeypatch.setattr(seccomp, "LIBRARY", "libseccomp.so.0")
    seccomp.compiled.cache_clear()
    found = await probe_tiers()
    assert found.available == ()
    assert "apt install libseccomp2" in found.refusals["landlock"]


AS_ORDINARY_USER = """
set -e
if ! setpriv --reuid=65534 --clear-groups test -x "$2"; then
  keep=$(mktemp -d /tmp/daarion-test-XXXXXX); trap 'rmdir "$keep"' EXIT
  mount --bind "$1" "$keep"; mount -t tmpfs -o mode=755 tmpfs "$3"
  mkdir -p "$1"; mount --bind "$keep" "$1"; umount "$keep"
fi
setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --no-new-privs "$2" -c "$4"
"""
PROBE = """
import asyncio, json, os
from executors.python.tiers import probe_tiers
found = asyncio.run(probe_tiers())
print(json.dumps([os.getuid(), found.available, found.refusals]))
"""


async def test_the_tiers_hold_for_an_ordinary_user_too(host):
    if os.getuid() != 0:
        pytest.skip("this is an ordinary user")
    home = "/" + Path(sys.base_prefix).parts[1]
    process = await asyncio.create_subprocess_exec(
        "unshare", "--mount", "--propagation", "private", "sh", "-c", AS_ORDINARY_USER, "sh",
        sys.base_prefix, sys.executable, home, PROBE,
        cwd=Path(__file__).parents[3], stdout=-1, stderr=-1,
    )  # fmt: skip
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    if process.returncode:
        pytest.skip(f"cannot become another user here: {errors.decode()[-200:]}")
    user, available, refusals = json.loads(output)
    assert user == 65534
    assert [*available] == [*host.available], refusals
