"""The data directory: its layout, its lock, what runs there, and files for the owner alone.

    <data dir>/            0700 (0711 as root: PostgreSQL's own account must reach its folder)
      postgres/            the cluster
      nats/                JetStream's store
      kb/                  the knowledge base's folders
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
import json
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
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
class Part:
    """One started part; `pid` is None for a store that runs elsewhere."""

    name: str
    pid: int | None
    address: str


class DataDir:
    """One data directory: paths, passwords, lock, and what its launcher has started."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.postgres = root / "postgres"
        self.nats = root / "nats"
        self.logs = root / "logs"
        self.secrets = root / "secrets"
        self.run = root / "run"
        self.ports = root / "ports.json"
        self.services = root / "run" / "services.json"
        """The URLs of the running stores, for a graph beside the launcher."""

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
            for path in (self.nats, self.root / "models", self.logs, self.secrets, self.run):
                _private_directory(path, 0o700)
            for path in (self.root / "kb", self.root / "cache"):
                is_shared = path.is_symlink() or path.is_mount()  # perhaps on purpose
                if not (is_shared or _is_others(path)):
                    _private_directory(path, 0o700)
            (self.run / ".writable").touch()
        except OSError as error:
            raise StartRefused(
                f"the data directory {self.root} cannot be written ({error.strerror}): "
                "fix its owner and mode, or set DAARION_DATA_DIR"
            ) from error

    def secret(self, name: str) -> str:
        """Returns the password `name`, generated at the first call into a 0600 file."""
        return ensure_secret(self.secrets / name).read_text().strip()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the directory's lock, with this process's id in its file; the kernel frees it when
        its holder dies.

        Raises:
            StartRefused: another launcher holds it.
        """
        with open(self.root / ".lock", "a+", opener=open_private) as file:
            try:
                _lock(file.fileno())
            except BlockingIOError as error:
                raise StartRefused(
                    f"the data directory {self.root} belongs to a running launcher "
                    f"(pid {self.holder() or 'unknown'}): stop that one, "
                    "or set DAARION_DATA_DIR and DAARION_PORT for a second instance"
                ) from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def holder(self) -> int | None:
        """Returns the pid of the running launcher, or None when nobody holds the lock."""
        with suppress(OSError), (self.root / ".lock").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read() or 0) or None
        return None

    def write_parts(self, parts: list[Part]) -> None:
        """Records the running parts, for `status` and `reload`."""
        content = {"launcher": os.getpid(), "parts": [asdict(part) for part in parts]}
        write_private(self.run / "state.json", json.dumps(content, indent=1))

    def read_parts(self) -> dict[str, Part]:
        """Returns the parts of the running launcher by name; ignores the file of a killed one."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            if self.holder() is not None:
                content = json.loads((self.run / "state.json").read_text())
                return {part["name"]: Part(**part) for part in content["parts"]}
        return {}

    def clear_run(self) -> None:
        """Removes every file under `run/`."""
        for path in self.run.iterdir():
            path.unlink()


def _lock(descriptor: int) -> None:
    """Takes the lock; retries, since `holder` in another process may have it for a moment."""
    for remaining in reversed(range(_LOCK_TRIES)):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not remaining:
                raise
            time.sleep(_LOCK_PAUSE_S)
        else:
            return


def ensure_secret(file: Path) -> Path:
    """Returns `file`, with a secret generated at the first call. Raises OSError."""
    if not (file.exists() and file.stat().st_size):
        whole = _write_beside(file, secrets.token_hex(32))
        try:
            os.link(whole, file)  # unlike a rename, this never replaces another process's secret
        except FileExistsError:
            if not file.stat().st_size:  # of a version that died before it wrote the secret
                whole.replace(file)
        whole.unlink(missing_ok=True)
    return file


def write_private(path: Path, text: str) -> None:
    """Replaces `path` in one step by a file that only its owner can read. Raises OSError."""
    _write_beside(path, text).replace(path)


def _write_beside(path: Path, text: str) -> Path:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "x", opener=open_private) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def open_private(path: str, flags: int) -> int:
    """Opens a file for its owner alone, as the `opener` of `open`."""
    return os.open(path, flags, 0o600)


def _own_root(root: Path, mode: int) -> None:
    """Creates the data directory, or sets the mode of an existing one with only our content.

    Raises:
        StartRefused: it is open to others and has other content, or is world-writable like /tmp.
    """
    if root.exists():
        found = root.stat().st_mode
        foreign = min({path.name for path in root.iterdir()} - _CONTENT, default=None)
        if found & 0o777 != mode and (found & stat.S_ISVTX or foreign is not None):
            why = f"{foreign} in it is not ours" if foreign else "everybody may write there"
            raise StartRefused(
                f"the data directory {root} is shared ({why}): "
                f"set DAARION_DATA_DIR to a folder of its own, such as {root / 'daarion'}"
            )
    _private_directory(root, mode)


def _is_others(path: Path) -> bool:
    return path.exists() and path.stat().st_uid != os.geteuid()


def _private_directory(path: Path, mode: int) -> None:
    path.mkdir(mode=mode, parents=True, exist_ok=True)
    path.chmod(mode)
