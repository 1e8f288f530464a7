"""The data directory: its layout, its lock, and the files in it that only the owner may read.

    <data dir>/            0700 (0711 as root: PostgreSQL's own account must reach its folder)
      postgres/            the cluster
      nats/                JetStream's store
      models/              built by `make models`
      logs/                one bounded file per child
      secrets/             generated passwords, one 0600 file each
      run/                 what is running now: URLs, state, pid; empty after a stop
      ports.json           chosen ports, reused while they are free
      .lock                held by the running launcher

Folders inside are 0700; whatever holds a password is 0600 from the moment it exists.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import StartRefused

# What the launcher, the model builder and the graph make directly below a data directory.
_CONTENT = frozenset({
    ".lock", "cache", "journal", "kb", "logs", "models", "nats", "ports.json", "postgres",
    ".postgres.draft", ".postgres.password", "ray", "ray-token", "run", "secrets",
})  # fmt: skip

_LOCK_TRIES = 5
_LOCK_PAUSE_S = 0.05


@dataclass(frozen=True)
class DataDir:
    """Paths inside one data directory."""

    root: Path

    @property
    def postgres(self) -> Path:
        return self.root / "postgres"

    @property
    def nats(self) -> Path:
        return self.root / "nats"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def secrets(self) -> Path:
        return self.root / "secrets"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def ports(self) -> Path:
        return self.root / "ports.json"

    @property
    def services(self) -> Path:
        """The URLs of the running stores, for a graph beside the launcher."""
        return self.run / "services.json"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def prepare(self) -> None:
        """Creates missing folders and removes other users' rights from existing ones.

        Leaves the mode of a folder that has other content than a data directory.

        Raises:
            StartRefused: the directory cannot be created or written, or is a shared folder.
        """
        try:
            _own_root(self.root, 0o711 if os.geteuid() == 0 else 0o700)
            for path in (self.nats, self.models, self.logs, self.secrets, self.run):
                _private_directory(path, 0o700)
            probe = self.run / ".writable"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise StartRefused(
                f"the data directory {self.root} cannot be written ({error.strerror}): "
                "fix its owner and mode, or set DAARION_DATA_DIR"
            ) from error

    def secret(self, name: str) -> str:
        """Returns the password `name`, generated at the first call into a 0600 file."""
        self.secrets.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.secrets / name
        if not path.exists():
            temporary = _write_beside(path, secrets.token_urlsafe(32))
            # Unlike a rename, a link never replaces the password of another process.
            with suppress(FileExistsError):
                os.link(temporary, path)
            temporary.unlink()
        return path.read_text().strip()


class DataDirLock:
    """An exclusive lock on a data directory; the kernel frees it when its holder dies."""

    def __init__(self, data_dir: DataDir) -> None:
        self._path = data_dir.root / ".lock"
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Takes the lock and writes this process's id into the file.

        Raises:
            StartRefused: another launcher holds it.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lock(descriptor)
        except BlockingIOError as error:
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            raise StartRefused(
                f"the data directory {self._path.parent} belongs to a running launcher "
                f"(pid {holder or 'unknown'}): stop that one, "
                "or set DAARION_DATA_DIR and DAARION_PORT for a second instance"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def holder(self) -> int | None:
        """Returns the pid of the running launcher, or None when nobody holds the lock."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.read(descriptor, 32).decode(errors="replace").strip()
            return int(text) if text.isdigit() else None
        finally:
            os.close(descriptor)
        return None


def _lock(descriptor: int) -> None:
    """Takes the lock; retries, since `holder` in another process may have it for a moment."""
    for _ in range(_LOCK_TRIES - 1):
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_LOCK_PAUSE_S)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def write_private(path: Path, text: str) -> None:
    """Replaces `path` in one step by a file that only its owner can read. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write_beside(path, text).replace(path)


def _write_beside(path: Path, text: str) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _own_root(root: Path, mode: int) -> None:
    """Creates the data directory, or sets the mode of an existing one with only our content.

    Raises:
        StartRefused: it is open to others and has other content, or is world-writable like /tmp.
    """
    if root.exists():
        found = root.stat().st_mode
        foreign = next(
            (path.name for path in sorted(root.iterdir()) if path.name not in _CONTENT), None
        )
        if found & 0o777 != mode and (found & stat.S_ISVTX or foreign is not None):
            why = f"{foreign} in it is not ours" if foreign else "everybody may write there"
            raise StartRefused(
                f"the data directory {root} is shared ({why}): "
                f"set DAARION_DATA_DIR to a folder of its own, such as {root / 'daarion'}"
            )
    _private_directory(root, mode)


def _private_directory(path: Path, mode: int) -> None:
    path.mkdir(mode=mode, parents=True, exist_ok=True)
    if path.stat().st_mode & 0o777 != mode:
        path.chmod(mode)
