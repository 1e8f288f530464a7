"""Load with streams: n connections, each reading one Server-Sent Events answer after another."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

from benchmarks.processes import MODEL, NotMeasured

_BODY = (
    '{"model":"%s",%s"messages":[{"role":"user","content":"Call %s-%d"}],'
    '"max_tokens":64,"temperature":0,'
    '"metadata":{"agent_id":"agent:sofia","microdao_id":"microdao:7","channel_id":"channel:1"}}'
)
_END = b"\r\n0\r\n\r\n"
_STALLED_S = 30.0


@dataclass(frozen=True)
class StreamLoad:
    """Result of one run.

    Times in milliseconds, to the first token and to the end; `tokens` per stream.
    """

    streams: int
    streams_per_s: float
    first_p50_ms: float
    first_p99_ms: float
    total_p50_ms: float
    total_p99_ms: float
    tokens: float
    errors: int
    cpu_ms: float = 0.0
    memory_mib: float = 0.0
    growth_kib: float = 0.0


@dataclass
class _Tally:
    run: str
    started: int = 0
    tokens: int = 0
    errors: int = 0
    first_ms: list[float] = field(default_factory=list)
    total_ms: list[float] = field(default_factory=list)


class _StreamClient(asyncio.Protocol):
    """One connection: sends requests until `until`, noting first token and end of each."""

    def __init__(self, head: bytes, extra: str, tally: _Tally, until: float) -> None:
        self._head = head
        self._extra = extra
        self._tally = tally
        self._until = until
        self._body = b""
        self._first: float | None = None
        self._sent = 0.0
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._body += data
        if self._first is None and b"data: {" in self._body:
            self._first = time.perf_counter()
        if self._body.endswith(_END):
            self._note()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # of the base
        if self._body:
            self._tally.errors += 1
        if not self.closed.done():
            self.closed.set_result(None)

    def _send(self) -> None:
        if time.perf_counter() >= self._until:
            self._body = b""
            self._transport.close()
            return
        self._tally.started += 1
        body = (_BODY % (MODEL, self._extra, self._tally.run, self._tally.started)).encode()
        self._body, self._first, self._sent = b"", None, time.perf_counter()
        self._transport.write(self._head % len(body) + body)

    def _note(self) -> None:
        if (
            self._body.startswith(b"HTTP/1.1 200")
            and self._first is not None
            and b"event: error" not in self._body
        ):
            self._tally.first_ms.append((self._first - self._sent) * 1000)
            self._tally.total_ms.append((time.perf_counter() - self._sent) * 1000)
            self._tally.tokens += self._body.count(b"data: {")
        else:
            self._tally.errors += 1
        self._send()


async def run_streams(
    url: str,
    headers: dict[str, str],
    run: str,
    *,
    connections: int,
    seconds: float,
    extra: str = "",
) -> StreamLoad:
    """Loads `url` for `seconds`; streams under way then are read to their end.

    Each JSON body names the `run` and holds `extra`.

    Raises:
        NotMeasured: no connection, or no stream came to its end.
    """
    parts = urlsplit(url)
    more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        f"Content-Type: application/json\r\n{more}Content-Length: %d\r\n\r\n"
    ).encode()
    tally, began = _Tally(run), time.perf_counter()
    loop = asyncio.get_running_loop()
    clients = []
    for _ in range(connections):
        _, client = await loop.create_connection(
            lambda: _StreamClient(head, extra, tally, began + seconds),
            parts.hostname or "",
            parts.port or 80,
        )
        clients.append(client)
    _, pending = await asyncio.wait(
        [client.closed for client in clients], timeout=seconds + _STALLED_S
    )
    tally.errors += len(pending)
    if not tally.first_ms:
        raise NotMeasured("no stream came to its end")
    count, elapsed = len(tally.first_ms), time.perf_counter() - began
    return StreamLoad(
        streams=count,
        streams_per_s=count / elapsed,
        first_p50_ms=_percentile(tally.first_ms, 50),
        first_p99_ms=_percentile(tally.first_ms, 99),
        total_p50_ms=_percentile(tally.total_ms, 50),
        total_p99_ms=_percentile(tally.total_ms, 99),
        tokens=tally.tokens / count,
        errors=tally.errors,
    )


def _percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
