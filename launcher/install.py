"""Fills `.venv` from the lock files: `python3 -m launcher.install cpu|dev|gpu`.

Imports the standard library alone, since it runs before anything is installed.
`dev` is `cpu` and the developers' tools. Where pip finds no CPU build of torch, the lock `general`
is installed instead of `cpu`: the general build of torch and the CUDA libraries that it loads.
pip checks every file against the hashes in the lock. A stamp in the environment names each lock
that was installed, so that the next start installs nothing. The GPU set replaces packages of the
CPU set: a change between the two creates the environment anew, as another version of Python does.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
FAMILIES = {"cpu": "cpu", "dev": "cpu", "gpu": "gpu"}
ENGINE_LOCKS = {"cpu": ("cpu", "general"), "gpu": ("gpu",)}
_DISK_NEEDED_GB = {"cpu": 6, "general": 12, "gpu": 20}
_HEARTBEAT_S = 15
PACKAGES_ONLY = "--packages-only"


class InstallFailed(Exception):
    """An installation failed; its text is shown to the operator."""


class InstallRefused(InstallFailed):
    """Nothing was installed; the message says what the operator must correct first."""


class Installer:
    """Fills one virtual environment from the lock files of one repository."""

    def __init__(
        self,
        repository: Path = REPOSITORY,
        step: Callable[[str, list[str], Path], None] | None = None,
    ) -> None:
        self.repository = repository
        self.venv = repository / ".venv"
        self.python = self.venv / "bin" / "python"
        self._run_step = step or run_step

    def ensure(self, profile: str, *, project: bool = True) -> None:
        """Installs what `profile` needs and lacks; without `project` the packages alone.

        Waits for another installation into the same environment and uses what that one installed.

        Raises:
            InstallRefused: a running graph uses the environment, or this machine lacks something.
            InstallFailed: pip failed.
        """
        if not self._lock("cpu").exists():
            raise InstallRefused(f"ops/locks has no lock files for Python {PYTHON}")
        with self._alone():
            self._ensure_venv(FAMILIES[profile])
            engines = ENGINE_LOCKS[FAMILIES[profile]]
            if not any(self._lock_stamp(lock).exists() for lock in engines):
                lock = "gpu" if profile == "gpu" else self._engine_lock()
                self._install(lock, replaced=engines)
            if profile == "dev" and not self._lock_stamp("dev").exists():
                self._install("dev", replaced=["dev"])
            if project:
                self._ensure_project()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Locks the repository's folder; the kernel frees the lock however this process ends."""
        descriptor = os.open(self.repository, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _say("waiting for another installation into this environment …")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _lock(self, lock: str) -> Path:
        return self.repository / "ops" / "locks" / f"{lock}-{PYTHON}.lock"

    def _lock_stamp(self, lock: str) -> Path:
        return self._stamp(lock, self._lock(lock).read_bytes())

    def _stamp(self, kind: str, content: bytes) -> Path:
        return self.venv / f".installed-{kind}-{hashlib.sha256(content).hexdigest()[:16]}"

    def _install(self, lock: str, replaced: Sequence[str]) -> None:
        file = self._lock(lock)
        count = sum(line[0].isalnum() for line in file.read_text().splitlines())
        options = ["--only-binary", ":all:", "--require-hashes", "--requirement", str(file)]
        title = f"installing {count} packages from {file.relative_to(self.repository)}"
        self._pip_install(title, options, replaced, self._lock_stamp(lock))

    def _ensure_project(self) -> None:
        content = tomllib.loads((self.repository / "pyproject.toml").read_text())
        relevant = [str(self.repository), content["project"], content["tool"]["setuptools"]]
        stamp = self._stamp("project", json.dumps(relevant, sort_keys=True).encode())
        if not stamp.exists():
            options = ["--no-build-isolation", "--editable", str(self.repository)]
            self._pip_install("installing this repository into it", options, ["project"], stamp)

    def _pip_install(
        self, title: str, options: list[str], replaced: Sequence[str], stamp: Path
    ) -> None:
        """Installs, and marks that with `stamp` in place of the stamps of the kinds `replaced`."""
        for kind in replaced:
            for old in self.venv.glob(f".installed-{kind}-*"):
                old.unlink()
        pip = [str(self.python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        self._run_step(title, [*pip, "--no-deps", *options], self.repository)
        stamp.touch()

    def _engine_lock(self) -> str:
        """Returns `cpu` where pip finds the build of torch that this lock names, else `general`.

        Raises:
            InstallFailed: pip finds no torch at all, so it reaches no package index.
        """
        named = re.search(r"^torch===(\S+)", self._lock("cpu").read_text(), re.MULTILINE)
        look_up = [str(self.python), "-m", "pip", "index", "versions", "torch"]
        found = subprocess.run(look_up, check=False, capture_output=True, text=True)
        if found.returncode != 0:
            raise InstallFailed(f"pip finds no torch:\n{found.stderr.strip()}")
        if named and named[1] in re.split(r"[\s,()]+", found.stdout):
            return "cpu"
        _say("pip finds no CPU build of torch: installing the general one and its CUDA libraries")
        self._check_disk("general")
        return "general"

    def _ensure_venv(self, family: str) -> None:
        """Creates the environment if it is not complete, or has the other family's packages."""
        note = self.venv / ".family"
        other = note.exists() and note.read_text() != family
        # pip comes last into an environment; its folder is of one version of Python.
        pip = self.venv / "lib" / f"python{PYTHON}" / "site-packages" / "pip" / "__main__.py"
        if other or not (self.python.exists() and pip.exists()):
            if any(importlib.util.find_spec(module) is None for module in ("venv", "ensurepip")):
                raise InstallRefused(
                    "this Python has no venv module: "
                    "install it (Debian, Ubuntu: apt install python3-venv)"
                )
            self._check_disk(family)
            if pids := users_of(self.python):
                raise InstallRefused(
                    f"a graph runs from {self.venv} (pid {pids[0]}), which must be created anew: "
                    "stop the graph first"
                )
            why = " (it held the other set of packages)" if other else ""
            command = [sys.executable, "-m", "venv", "--clear", str(self.venv)]
            self._run_step(f"creating {self.venv.name}{why}", command, self.repository)
        note.write_text(family)

    def _check_disk(self, lock: str) -> None:
        free_gb, needed_gb = shutil.disk_usage(self.repository).free >> 30, _DISK_NEEDED_GB[lock]
        if free_gb < needed_gb:
            raise InstallRefused(
                f"the installation needs about {needed_gb} GB of disk and {free_gb} GB are free: "
                "make room"
            )


def users_of(python: Path) -> list[int]:
    """Returns the ids of other processes started as `python`: by this path, not by its target."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            program = (entry / "cmdline").read_bytes().split(b"\0", 1)[0].decode(errors="replace")
            if (
                int(entry.name) != os.getpid()
                and program
                and os.path.normpath(entry.joinpath("cwd").readlink() / program) == str(python)
            ):
                found.append(int(entry.name))
    return sorted(found)


def run_step(title: str, argv: list[str], cwd: Path) -> None:
    """Runs one long command and reports its start, every 15 s that it still runs, and its time.

    Raises:
        InstallFailed: the command ended with another status than 0.
    """
    began = time.monotonic()
    _say(f"{title} …")
    with subprocess.Popen(argv, cwd=cwd) as process:
        while True:
            try:
                status = process.wait(_HEARTBEAT_S)
                break
            except subprocess.TimeoutExpired:
                _say(f"  still {title}: {time.monotonic() - began:.0f} s")
    if status != 0:
        raise InstallFailed(f"{title} failed with status {status}; the lines above say why")
    _say(f"  done in {time.monotonic() - began:.0f} s")


def main(arguments: list[str]) -> int:
    """Installs one profile; returns 0, 1 (failed), 2 (refused, see `ensure`) or 130 (interrupted).

    With `--packages-only` the repository itself is left out: an image has the packages in a layer
    of their own, which is built again only when a lock changes.
    """
    packages_only = arguments[1:] == [PACKAGES_ONLY]
    if not arguments or arguments[0] not in FAMILIES or (len(arguments) > 1 and not packages_only):
        _say(f"usage: python3 -m launcher.install {'|'.join(FAMILIES)} [{PACKAGES_ONLY}]")
        return 2
    try:
        Installer().ensure(arguments[0], project=not packages_only)
    except InstallFailed as error:
        _say(str(error))
        return 2 if isinstance(error, InstallRefused) else 1
    except KeyboardInterrupt:
        _say("interrupted; the next run continues from here")
        return 130
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
