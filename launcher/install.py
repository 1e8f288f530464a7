"""Makes `.venv` fit a lock file: `python3 -m launcher.install cpu|dev|gpu`. Standard library alone, it runs before anything is there.

A stamp in the environment names the lock file it was filled from, so that a further start installs nothing. `dev` contains
`cpu`. The GPU set replaces packages of the CPU set, so a change between them builds the environment anew.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
FAMILIES = {"cpu": "cpu", "dev": "cpu", "gpu": "gpu"}
_DISK_NEEDED = {"cpu": 6 << 30, "gpu": 20 << 30}
_HEARTBEAT_S = 15
PACKAGES_ONLY = "--packages-only"


class InstallFailed(Exception):
    """Told to the operator in one line."""


class InstallRefused(InstallFailed):
    """Nothing was begun: something has to be put right first."""


class Installer:
    """Fills one virtual environment from the lock files of one repository."""

    def __init__(
        self,
        repository: Path = REPOSITORY,
        step: Callable[[str, list[str], Path], None] | None = None,
    ) -> None:
        self.repository = repository
        self.venv = repository / ".venv"
        self._run_step = step or run_step
        self.python = self.venv / "bin" / "python"

    def ensure(self, profile: str, *, project: bool = True) -> None:
        """Installs what `profile` needs, unless it is there; without `project` the packages alone.

        One installation at a time: another one is waited for, and what it did is used.

        Raises:
            InstallRefused: a running graph needs what would be removed, or this machine lacks something.
            InstallFailed: pip failed.
        """
        with self._alone():
            self._ensure(profile, project=project)

    def _ensure(self, profile: str, *, project: bool) -> None:
        if not self.satisfied(profile):
            self._fill(profile)
        if project and not self._project_stamp().exists():
            options = ["--no-deps", "--no-build-isolation", "--editable", str(self.repository)]
            self._step("installing this repository into it", self._pip(*options))
            self._remove_stamps("project")
            self._project_stamp().touch()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Holds a lock on the repository's folder, which the kernel frees however this process ends."""
        descriptor = os.open(self.repository, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _say("another installation is at work here: waiting for it …")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def satisfied(self, profile: str) -> bool:
        """Whether the environment was filled from the current lock file of `profile`, or from one that contains it."""
        if not self.python.exists():
            return False
        if self.lock_stamp(profile).exists():
            return True
        contained = profile == "cpu" and self._requirements("cpu") <= self._requirements("dev")
        return contained and self.lock_stamp("dev").exists()

    def lock_stamp(self, profile: str) -> Path:
        return self.venv / f".installed-{profile}-{_digest(self._lock(profile).read_bytes())}"

    def _fill(self, profile: str) -> None:
        family = FAMILIES[profile]
        self._make_venv(family)
        for name in FAMILIES:  # an interrupted installation must not look like a finished one
            self._remove_stamps(name)
        if family == "cpu":
            self._install_torch(profile)
        lock = self._lock(profile)
        count = len(self._requirements(profile))
        self._step(
            f"installing {count} packages from requirements/{lock.name}",
            self._pip("--no-deps", "--requirement", str(lock)),
        )
        self.lock_stamp(profile).touch()

    def _make_venv(self, family: str) -> None:
        note = self.venv / ".family"
        other = note.exists() and note.read_text() != family
        if not self._has_pip() or other:
            if any(importlib.util.find_spec(module) is None for module in ("venv", "ensurepip")):
                raise InstallRefused(
                    "this Python has no venv module: install it (Debian, Ubuntu: apt install python3-venv)"
                )
            self._check_disk(family)
            self._check_unused()
            why = " (it held the other set of packages)" if other else ""
            self._step(
                f"creating {self.venv.name}{why}",
                [sys.executable, "-m", "venv", "--clear", str(self.venv)],
            )
        note.write_text(family)

    def _has_pip(self) -> bool:
        """Whether the environment was made to its end: pip comes last."""
        return self.python.exists() and any(
            self.venv.glob("lib/python*/site-packages/pip/__main__.py")
        )

    def _check_disk(self, family: str) -> None:
        free, needed = shutil.disk_usage(self.repository).free, _DISK_NEEDED[family]
        if free < needed:
            raise InstallRefused(
                f"{free >> 30} GB of disk are free, the installation needs about {needed >> 30} GB: make room"
            )

    def _check_unused(self) -> None:
        """Nothing runs from the environment that is about to be emptied."""
        if pids := users_of(self.python):
            raise InstallRefused(
                f"a graph runs from {self.venv} (pid {pids[0]}), which has to be made anew: stop it first"
            )

    def _install_torch(self, profile: str) -> None:
        """Torch first and with its dependencies: where pip finds no CPU build, the general one needs its CUDA libraries."""
        lock = self._lock(profile)
        version = next(
            line.partition("==")[2]
            for line in self._requirements(profile)
            if line.startswith("torch==")
        )
        if self._installed_version("torch").partition("+")[0] != version:
            self._step(
                f"installing torch {version}, the largest package",
                self._pip("--constraint", str(lock), f"torch=={version}"),
            )

    def _installed_version(self, package: str) -> str:
        code = f"import importlib.metadata as m\ntry: print(m.version({package!r}))\nexcept m.PackageNotFoundError: print('')"
        return subprocess.run(
            [self.python, "-c", code], check=False, capture_output=True, text=True
        ).stdout.strip()

    def _pip(self, *arguments: str) -> list[str]:
        return [
            str(self.python),
            "-m",
            "pip",
            "install",
            "-qq",
            "--disable-pip-version-check",
            *arguments,
        ]

    def _step(self, title: str, argv: list[str]) -> None:
        self._run_step(title, argv, self.repository)

    def _remove_stamps(self, kind: str) -> None:
        for stamp in self.venv.glob(f".installed-{kind}-*"):
            stamp.unlink()

    def _project_stamp(self) -> Path:
        content = tomllib.loads((self.repository / "pyproject.toml").read_text())
        relevant = [str(self.repository), content["project"], content["tool"]["setuptools"]]
        return (
            self.venv
            / f".installed-project-{_digest(json.dumps(relevant, sort_keys=True).encode())}"
        )

    def _lock(self, profile: str) -> Path:
        return self.repository / "requirements" / f"{profile}.lock"

    def _requirements(self, profile: str) -> set[str]:
        lines = self._lock(profile).read_text().splitlines()
        return {line.strip() for line in lines if re.match(r"[A-Za-z0-9]", line)}


def users_of(python: Path) -> list[int]:
    """Returns the ids of the processes that were started as `python` (its path, not what it links to), this one left out."""
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
    """Runs one long command; says that it runs, every 15 s that it still does, and how long it took.

    Raises:
        InstallFailed: it ended with another status than 0.
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
    """Installs one profile; returns 0, 1 (failed) or 2 (refused: a running graph needs it, or this machine lacks something).

    With `--packages-only` the repository itself is left out, for an image's layer that only a changed lock file rebuilds.
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
        _say("interrupted; the next run goes on from here")
        return 130
    return 0


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
