"""How a child is started in each tier: its command, working directory and sandbox parameters."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contracts.tools.api import IsolationTier
from executors.python import seccomp
from executors.python.scratch import MAX_FILES

ROOT = Path(__file__).resolve().parents[2]
CHILD = (str(ROOT / "executors" / "__init__.py"), str(Path(__file__).resolve().parent))
BUBBLEWRAP = "bwrap"
SCRATCH_IN_BUBBLEWRAP = "/scratch"

# Isolated mode without site-packages; the repository is importable only for the child's modules.
_START = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from executors.python.child.main import main; del sys.path[0]; main()"
)
_SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")
_SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo", "/dev/urandom")
_NETWORK_FILES = (
    "/etc/resolv.conf", "/run/systemd/resolve", "/etc/hosts", "/etc/nsswitch.conf",
    "/etc/services", "/etc/host.conf", "/etc/gai.conf", "/etc/ssl", "/etc/pki",
    "/etc/ca-certificates", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates",
)  # fmt: skip


@dataclass(frozen=True)
class ChildLimits:
    """Bounds of one child. `memory_bytes` is its address space; `threads`: it may start threads."""

    cpu_s: int
    memory_bytes: int
    scratch_bytes: int
    open_files: int
    threads: bool = False


@dataclass(frozen=True)
class Launch:
    """What `SandboxedProcess` starts. `{call}` and `{result}` in the command are descriptors."""

    command: Sequence[str]
    directory: str
    sandbox: dict[str, Any]


def interpreter() -> str:
    """Returns the real interpreter behind a virtual environment's link."""
    return os.path.realpath(sys.executable)


def bubblewrap() -> str | None:
    """Returns bubblewrap's path, or None where it is not installed."""
    return shutil.which(BUBBLEWRAP)


def plan(
    tier: IsolationTier,
    limits: ChildLimits,
    *,
    packages: Iterable[str],
    network: bool,
    scratch: str,
) -> Launch:
    """Returns how to start a child in `tier`. Raises FilterUnavailable.

    `scratch` is the call's own folder; bubblewrap uses one in memory instead.
    """
    readable = [*_python_paths(), *CHILD, *packages]
    readable += _NETWORK_FILES if network else ()
    python = [
        interpreter(),
        "-I",
        "-S",
        "-B",
        "-X",
        "utf8",
        "-c",
        _START,
        str(ROOT),
        "{call}",
        "{result}",
    ]
    sandbox = {
        "tier": tier,
        # A PID namespace hides the parent; there bubblewrap ends the child.
        "parent": None if tier == "bubblewrap" else os.getpid(),
        "limits": {
            "cpu_s": limits.cpu_s,
            "memory_bytes": limits.memory_bytes,
            "file_bytes": limits.scratch_bytes,
            "open_files": limits.open_files,
        },
        "readable": [*readable, *_SYSTEM_LIBRARIES, *_SYSTEM_FILES],
        "writable": ["/dev/null"],
        "scratch": SCRATCH_IN_BUBBLEWRAP if tier == "bubblewrap" else scratch,
        "scratch_bytes": max(limits.scratch_bytes, 4096),  # 0 would mean without a bound
        "scratch_files": MAX_FILES,
        "network": network,
        "filter": seccomp.compiled(
            network=network,
            threads=limits.threads,
            metadata=tier == "bubblewrap",
            files=tier != "process",
        ).hex(),
    }
    if tier == "bubblewrap":
        return Launch([*_bubblewrap_command(readable, network=network), *python], "/", sandbox)
    return Launch(python, scratch, sandbox)


def _python_paths() -> list[str]:
    paths = sysconfig.get_paths(vars={"base": sys.base_prefix, "platbase": sys.base_exec_prefix})
    libraries = [
        str(Path(prefix) / "lib")
        for prefix in (sys.base_prefix, sys.base_exec_prefix)
        if prefix != "/usr"
    ]
    return list(dict.fromkeys([paths["stdlib"], paths["platstdlib"], *libraries]))


def _bubblewrap_command(readable: Iterable[str], *, network: bool) -> list[str]:
    command = [
        bubblewrap() or BUBBLEWRAP, "--unshare-all", *(["--share-net"] if network else []),
        "--die-with-parent", "--new-session",
        "--uid", "65534", "--gid", "65534", "--hostname", "tool",
        # In its own namespace, until the child has mounted its scratch folder.
        "--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN",
    ]  # fmt: skip
    for path in (*_SYSTEM_LIBRARIES, *_SYSTEM_FILES[:3], interpreter(), *dict.fromkeys(readable)):
        command += ["--ro-bind-try", path, path]
    for device in ("/dev/null", "/dev/urandom"):
        command += ["--dev-bind", device, device]
    return [*command, "--proc", "/proc", "--dir", SCRATCH_IN_BUBBLEWRAP, "--remount-ro", "/", "--"]
