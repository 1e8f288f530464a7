"""Servers that take a store's port and ask for credentials in a way that would reveal them."""

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

SSL_REQUEST = 80877103
CLEARTEXT, MD5, TRUST = struct.pack("!I", 3), struct.pack("!I", 5) + b"salt", struct.pack("!I", 0)


@dataclass
class Impostor:
    """`heard` is every message that came after the question, with its type."""

    port: int = 0
    greeted: int = 0
    heard: list[bytes] = field(default_factory=list)


@asynccontextmanager
async def postgres_impostor(asking: bytes) -> AsyncIterator[Impostor]:
    """A server that speaks PostgreSQL's protocol up to its question for a password."""
    impostor = Impostor()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                size, code = struct.unpack("!II", await reader.readexactly(8))
                await reader.readexactly(size - 8)
                if code != SSL_REQUEST:
                    break
                writer.write(b"N")
            impostor.greeted += 1
            writer.write(b"R" + struct.pack("!I", 4 + len(asking)) + asking)
            while kind := await reader.readexactly(1):
                (size,) = struct.unpack("!I", await reader.readexactly(4))
                impostor.heard.append(kind + await reader.readexactly(size - 4))
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    impostor.port = server.sockets[0].getsockname()[1]
    async with server:
        yield impostor


@asynccontextmanager
async def nats_impostor(tls: ssl.SSLContext | None = None) -> AsyncIterator[Impostor]:
    """A server that speaks NATS' protocol up to the client's introduction; with `tls`, behind a
    handshake.
    """
    impostor = Impostor()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        impostor.greeted += 1
        writer.write(
            b'INFO {"server_id":"x","version":"2.15.1","auth_required":true,'
            b'"max_payload":1048576}\r\n'
        )
        while data := await reader.read(4096):
            impostor.heard.append(data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    impostor.port = server.sockets[0].getsockname()[1]
    async with server:
        yield impostor
