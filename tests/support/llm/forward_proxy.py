"""A real forward proxy (proxy.py) in a process of its own, a TLS front for a server, and taps that
show what passed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from proxy.http.proxy import HttpProxyBasePlugin

REPOSITORY = Path(__file__).parents[3]
PATIENCE_S = 60


class TestNames(HttpProxyBasePlugin):
    """The proxy resolves every name below `.test` to loopback; nobody else does."""

    __test__ = False

    def resolve_dns(self, host: str, port: int) -> tuple[str | None, tuple[str, int] | None]:
        return ("127.0.0.1" if host.endswith(".test") else None), None


@dataclass
class Tap:
    """Passes bytes through to a port; `sent` is what clients sent."""

    target: int
    port: int = 0
    opened: int = 0
    sent: bytearray = field(default_factory=bytearray)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        await asyncio.gather(_copy(reader, back, self.sent), _copy(there, writer, bytearray()))


async def _copy(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: bytearray
) -> None:
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while data := await reader.read(1 << 16):
            seen += data
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def tap(target: int, context: ssl.SSLContext | None = None) -> AsyncIterator[Tap]:
    """With `context` clients speak TLS to it, and `sent` is what they sent inside."""
    tapped = Tap(target)
    server = await asyncio.start_server(tapped.serve, "127.0.0.1", 0, ssl=context)
    tapped.port = server.sockets[0].getsockname()[1]
    try:
        yield tapped
    finally:
        server.close()


@contextlib.asynccontextmanager
async def forward_proxy(folder: Path, *, auth: str | None = None) -> AsyncIterator[int]:
    """Yields the port of a proxy that demands `auth` (`user:password`), if given."""
    port_file = folder / "proxy.port"
    names = f"{TestNames.__module__}.{TestNames.__qualname__}"
    command = [sys.executable, "-m", "proxy", "--hostname", "127.0.0.1", "--port", "0"]
    command += ["--port-file", str(port_file), "--num-acceptors", "1", "--num-workers", "1"]
    command += ["--log-file", str(folder / "proxy.log"), "--plugins", names]
    command += ["--basic-auth", auth] if auth else []
    process = await asyncio.create_subprocess_exec(*command, cwd=REPOSITORY)
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not (port_file.exists() and port_file.read_text().strip()):
                assert process.returncode is None, (folder / "proxy.log").read_text()
                await asyncio.sleep(0.05)
        yield int(port_file.read_text().split()[0])
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def server_certificate(folder: Path, name: str) -> tuple[Path, ssl.SSLContext]:
    """Makes a certificate for `name` (`DNS:…` or `IP:…`); returns its file, which is also its
    authority, and a server's context.
    """
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt"]
    command += ["ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=test"]
    command += ["-addext", f"subjectAltName={name}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return certificate, context
