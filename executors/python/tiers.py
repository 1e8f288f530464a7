"""Which isolation tiers this host offers: each is attacked by a self-test before it is used."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import orjson

from contracts.tools.api import ISOLATION_TIERS, Isolation, IsolationTier
from executors.python.launch import ChildLimits, bubblewrap, plan
from executors.python.process import ChildDied, OutputFlood, SandboxedProcess, ScratchFull
from executors.python.seccomp import FilterUnavailable

PROBE_TIMEOUT_S = 10.0
PROBE_LIMITS = ChildLimits(cpu_s=5, memory_bytes=512 << 20, scratch_bytes=1 << 20, open_files=64)
_BY_PROCESS_TIER = frozenset(
    {
        "processes", "threads", "own_tables", "programs", "sockets", "local_sockets",
        "datagram_pairs", "signals", "owners", "owner_signals", "leases", "writing", "modes",
        "nameless_files", "hidden_files", "preallocation", "shared_memory", "memory_files",
        "pipe_sizes", "socket_buffers", "interfaces",
    }
)  # fmt: skip
_BY_HIDING = frozenset({"reading", "listing", "neighbours"})
# Each grant has its own filter, so each is tested: grant, functions, attempts that may succeed.
_TRIALS: tuple[tuple[str, tuple[str, ...], frozenset[str]], ...] = (
    ("nothing", ("probe", "hide"), frozenset()),
    ("threads", ("probe",), frozenset({"threads", "hidden_files"})),
    ("network", ("probe",), frozenset({"sockets", "hidden_files"})),
)
MUST_REFUSE: dict[IsolationTier, frozenset[str]] = {
    "process": _BY_PROCESS_TIER,
    "landlock": _BY_PROCESS_TIER | _BY_HIDING,
    "bubblewrap": _BY_PROCESS_TIER | _BY_HIDING,
}


@dataclass(frozen=True)
class HostTiers:
    """The tiers that this host offers, weakest first, and why it lacks the others."""

    available: tuple[IsolationTier, ...]
    refusals: dict[IsolationTier, str] = field(default_factory=dict)

    def choose(self, weakest: Isolation, floor: IsolationTier = "process") -> IsolationTier | None:
        """Returns the strongest tier, if it is at least `weakest` and `floor`; else None."""
        enough = ISOLATION_TIERS[ISOLATION_TIERS.index(at_least(weakest, floor)) :]
        return next((tier for tier in reversed(enough) if tier in self.available), None)


def at_least(weakest: Isolation, floor: IsolationTier) -> IsolationTier:
    """Returns the stronger of the two; `auto` is the floor."""
    return floor if weakest == "auto" else max(weakest, floor, key=ISOLATION_TIERS.index)


async def probe_tiers(candidates: Sequence[IsolationTier] = ISOLATION_TIERS) -> HostTiers:
    """Tries each tier on this host."""
    found: list[IsolationTier] = []
    refusals: dict[IsolationTier, str] = {}
    for tier in ISOLATION_TIERS:
        reason = await _refusal(tier) if tier in candidates else "switched off by configuration"
        if reason is None:
            found.append(tier)
        else:
            refusals[tier] = reason
    return HostTiers(tuple(found), refusals)


async def _refusal(tier: IsolationTier) -> str | None:
    if tier == "bubblewrap" and bubblewrap() is None:
        return "bubblewrap (`bwrap`) is not installed"
    with tempfile.TemporaryDirectory(prefix="daarion-probe-") as folder:
        canary, scratch = _lay_out(folder)
        neighbour = canary.with_name("neighbour")
        let_through: set[str] = set()
        for grant, functions, exempt in _TRIALS:
            refused = set(exempt)
            for function in functions:
                found = await _attempts(tier, grant, function, canary, scratch)
                if isinstance(found, str):
                    return found
                refused |= found
            # In its own mount namespace the child may write that file; the host must not see it.
            refused |= {"writing"} if not neighbour.exists() else set()
            let_through |= MUST_REFUSE[tier] - refused
    return (
        f"the self-test was not stopped: {', '.join(sorted(let_through))}" if let_through else None
    )


def _lay_out(folder: str) -> tuple[Path, str]:
    """Creates a private file and the tool's folder. Returns their real paths, as in /proc."""
    outside, scratch = (Path(folder).resolve() / name for name in ("outside", "scratch"))
    for directory in (outside, scratch):
        directory.mkdir(mode=0o700)
    canary = outside / "canary"
    canary.write_text("private")
    return canary, str(scratch)


async def _attempts(
    tier: IsolationTier, grant: str, function: str, canary: Path, scratch: str
) -> set[str] | str:
    """Returns the attempts that were refused, or why the sandbox does not start."""
    try:
        limits = replace(PROBE_LIMITS, threads=grant == "threads")
        launch = plan(tier, limits, packages=(), network=grant == "network", scratch=scratch)
    except FilterUnavailable as error:
        return str(error)
    call = {
        "package": None,
        "module": "executors.python.child.selftest",
        "function": function,
        "args": {"canary": str(canary), "neighbour": str(canary.parent / "neighbour")},
        "context": {},
        "variables": {},
        "max_result_bytes": 1 << 16,
    }
    child = SandboxedProcess(launch, call, max_frame_bytes=1 << 17, scratch_bytes=1 << 20)
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            frame = await child.frame()
    except ScratchFull:
        return {"hidden_files"}
    except PermissionError:
        return "the runner may not inspect the sandbox's process for hidden files"
    except (ChildDied, OutputFlood, TimeoutError):
        return "the sandbox does not start on this host"
    finally:
        await child.end()
    answer = None
    with contextlib.suppress(orjson.JSONDecodeError):
        answer = orjson.loads(frame.body)
    if frame.tag != b"R" or not isinstance(answer, dict):
        return (
            str(answer.get("error")) if isinstance(answer, dict) else "the self-test did not answer"
        )
    return {name for name, refused in answer.items() if refused is True}
