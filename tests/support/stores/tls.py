"""PostgreSQL behind TLS, with certificates of the test's own."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from launcher.cluster import ACCOUNT
from launcher.ports import free_ports
from launcher.process import ChildProcess, Command, run_tool
from tests.support.stores.impostor import SSL_REQUEST


class Authority:
    """Signs certificates; its own is `folder/<name>.crt`."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.file = folder / f"{name}.crt"
        self._write(self.file, self._name, self._key, x509.BasicConstraints(ca=True, path_length=0))

    def sign(self, host: str, *, days: int = 1) -> tuple[Path, Path]:
        """Returns the files of a certificate for `host` and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._folder / f"{self.file.stem}-{host}-{days}.crt"
        self._write(
            certificate,
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)]),
            key,
            x509.SubjectAlternativeName([x509.DNSName(host)]),
            days,
        )
        certificate.with_suffix(".key").write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        return certificate, certificate.with_suffix(".key")

    def _write(
        self,
        file: Path,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        extension: x509.ExtensionType,
        days: int = 1,
    ) -> None:
        now = datetime.now(UTC)
        signed = (
            x509.CertificateBuilder(
                self._name,
                subject,
                key.public_key(),
                x509.random_serial_number(),
                now - timedelta(days=2),
                now + timedelta(days=days),
            )
            .add_extension(extension, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        file.write_bytes(signed.public_bytes(Encoding.PEM))


@asynccontextmanager
async def behind_tls(port: int, certificate: Path, key: Path) -> AsyncIterator[int]:
    """Yields a port of PostgreSQL's protocol with TLS, in front of a server without it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            assert struct.unpack("!II", await reader.readexactly(8)) == (8, SSL_REQUEST)
            writer.write(b"S")
            await writer.start_tls(context)
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))
        writer.close()

    server = await asyncio.start_server(serve, ["127.0.0.1", "::1"], free_ports(1)[0])
    async with server:
        yield server.sockets[0].getsockname()[1]


def system_programs() -> Path | None:
    """Returns the folder of an installed PostgreSQL's programs, those of the wheel have no TLS."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    found = folders[-1] if folders else shutil.which("postgres")
    return Path(found).parent if found else None


class SystemServer(ChildProcess):
    """An installed PostgreSQL with `ssl = on`; the user `postgres` has `password`.

    Args:
        programs: as `system_programs` returns it.
        folder: an empty folder, which is given to the account of the server.
        password: of the superuser.
        certificate, key: files that the server shows.
    """

    def __init__(
        self, programs: Path, folder: Path, password: str, certificate: Path, key: Path
    ) -> None:
        super().__init__("PostgreSQL", certificate.with_name("postgres.log"))
        self._programs, self._folder, self._password = programs, folder, password
        self._certificate, self._key = certificate, key
        self.port = free_ports(1)[0]

    async def prepare(self) -> Command:
        folder = self._folder
        files = {"pw": None, "crt": self._certificate, "key": self._key}
        for name, source in files.items():
            content = source.read_bytes() if source else self._password.encode()
            (folder / name).write_bytes(content)
            (folder / name).chmod(0o600)
        account = None
        if os.geteuid() == 0:
            entry = pwd.getpwnam(ACCOUNT)
            account = (entry.pw_uid, entry.pw_gid)
            for path in (folder, *folder.iterdir()):
                os.chown(path, *account)
        options = ["-D", str(folder / "cluster"), "-U", "postgres", "--auth=scram-sha-256"]
        argv = [str(self._programs / "initdb"), *options, "-N", f"--pwfile={folder / 'pw'}"]
        status, output = await run_tool(Command(argv, {}, folder, account), timeout_s=100)
        assert status == 0, output
        settings = {
            "ssl": "on",
            "ssl_cert_file": folder / "crt",
            "ssl_key_file": folder / "key",
            "port": self.port,
            "unix_socket_directories": "",
            "fsync": "off",
        }
        argv = [str(self._programs / "postgres"), "-D", str(folder / "cluster")]
        argv += [part for item in settings.items() for part in ("-c", "=".join(map(str, item)))]
        return Command(argv, {}, folder, account)

    async def until_ready(self) -> None:
        async def accepts() -> bool:
            with suppress(psycopg.OperationalError):
                url = f"postgresql://postgres:{self._password}@127.0.0.1:{self.port}/postgres"
                await (await psycopg.AsyncConnection.connect(url)).close()
                return True
            return False

        await self.poll(accepts, 60)
