"""One HTTP/1.1 exchange on a connection: a request goes out, its answer comes in piece by piece. `httptools` (llhttp) parses.

    post ──► head (status, headers) ──► read, read, … b"" ──► release: used again, or closed

Nothing that the other side sends is trusted: what comes before, between and after bodies is bounded, and who sends more than was
asked for loses the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httptools

from common.inflate import PIECE_BYTES, Inflater, Undecodable

MAX_OVERHEAD_BYTES = 64 << 10
"""Bytes without any of the body among them: a head, the frames of chunks, trailers."""
HIGH_WATER_BYTES = PIECE_BYTES
"""Bytes that may wait to be read before the connection is no longer read from; also the most that is decompressed at a time."""


class HttpError(Exception):
    """What an exchange fails with."""


class ConnectFailed(HttpError):
    """No connection came about: name, route, port or TLS."""


class ConnectTimedOut(ConnectFailed):
    """No connection came about in time."""


class TimedOut(HttpError):
    """Nothing came in the time that was granted."""


class ConnectionBroken(HttpError):
    """The connection ended before the head of an answer had come."""


class AnswerCutOff(HttpError):
    """The answer ended, or went wrong, behind its head."""


class MalformedAnswer(HttpError):
    """The answer is not HTTP/1.1, or is over a bound."""


class AnswerTooLarge(HttpError):
    """The body is over the bound that was asked for."""


class Exchange:
    """One request and its answer. `release` must be called, whatever comes of it; `headers` have lower-case names.

    It fails once `expires_at` (monotonic seconds) has passed and somebody waits; the pool looks every `http_pool.TICK_S`.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        released: Callable[[bool], None],
    ) -> None:
        self.status = 0
        self.expires_at = float("inf")
        self.headers: dict[str, str] = {}
        self._transport = transport
        self._loop = loop
        self._released: Callable[[bool], None] | None = released
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._waiting_bytes = 0
        self._overhead = 0
        self._paused = False
        self._has_head = self._delimited = self._complete = self._keep = False
        self._error: HttpError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._inflater: Inflater | None = None

    # --- the caller's side

    async def head(self) -> None:
        """Waits for status and headers. Raises ConnectionBroken or MalformedAnswer."""
        while not self._has_head:
            if self._error is not None:
                raise self._error
            await self._more()
        encoding = self.headers.get("content-encoding", "").strip().lower()
        if encoding not in {"", "identity"}:
            try:
                self._inflater = Inflater(encoding)
            except Undecodable:
                raise MalformedAnswer from None

    async def read(self) -> bytes:
        """Returns what has come of the body, at least a byte; nothing at its end. Raises AnswerCutOff."""
        if self._inflater is None:
            return await self._received()
        try:
            while not (piece := self._inflater.pending()):
                if not (received := await self._received()):
                    self._inflater.check_ended()
                    return b""
                self._inflater.feed(received)
        except Undecodable:
            raise AnswerCutOff from None
        return piece

    async def _received(self) -> bytes:
        """Returns the next bytes of the body as they were sent; nothing at its end."""
        while not self._parts:
            if self._error is not None:
                raise self._error
            if self._complete:
                return b""
            await self._more()
        piece = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._waiting_bytes = 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return piece

    async def whole(self, limit: int) -> bytes:
        """Returns the whole body. Raises AnswerCutOff, or AnswerTooLarge for one of over `limit` bytes."""
        parts, size = [], 0
        while piece := await self.read():
            size += len(piece)
            if size > limit:
                raise AnswerTooLarge
            parts.append(piece)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @property
    def ended(self) -> bool:
        """Whether the answer has come to its end."""
        return self._complete

    def release(self) -> None:
        """Lets the connection go; an answer that has not ended is cut off by closing it."""
        if self._released is None:
            return
        released, self._released = self._released, None
        self._parser = (
            None  # it knows this object: a circle, which only the garbage collector would open
        )
        sent = self._transport.get_write_buffer_size() == 0
        released(self._complete and self._keep and sent and not self._paused)

    # --- the connection's side

    def feed(self, data: bytes) -> None:
        """Takes bytes off the wire. After `ended` there must be none."""
        if self._complete or self._parser is None:
            self._keep = False
            self._transport.abort()
            return
        self._overhead += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail_unless_complete()
        if self._overhead > MAX_OVERHEAD_BYTES and not self._complete:
            self._fail_unless_complete()
        if self._waiting_bytes > HIGH_WATER_BYTES and not self._paused and not self._complete:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def expire(self, now: float) -> None:
        """Fails where somebody has waited long enough."""
        if (
            now >= self.expires_at
            and self._waiter is not None
            and self._error is None
            and not self._complete
        ):
            self._error = TimedOut()
            self._keep = False
            self._wake()

    def lost(self, error: Exception | None) -> None:
        """Notes the end of the connection: which also ends a body of unknown length."""
        if not self._complete and self._error is None:
            if self._has_head and not self._delimited and error is None:
                self._complete = True
            else:
                self._error = AnswerCutOff() if self._has_head else ConnectionBroken()
        self._keep = False
        self._wake()

    def _fail_unless_complete(self) -> None:
        self._keep = False
        if not self._complete and self._error is None:
            self._error = AnswerCutOff() if self._has_head else MalformedAnswer()
        self._transport.abort()

    async def _more(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- the parser's callbacks

    def on_message_begin(self) -> None:
        """A second answer to one request is none of ours."""
        self._keep = self._keep and not self._complete

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keeps the first of each name; trailers come here, too, and are ignored."""
        if not self._has_head:
            self.headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))

    def on_headers_complete(self) -> None:
        """Passes over interim answers (1xx)."""
        if self._complete or self._parser is None:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self.headers.clear()
            return
        self.status = status
        self._has_head = True
        self._delimited = "content-length" in self.headers or "transfer-encoding" in self.headers

    def on_body(self, body: bytes) -> None:
        """Keeps a piece until it is read."""
        if not self._complete:
            self._overhead = 0
            self._parts.append(body)
            self._waiting_bytes += len(body)

    def on_message_complete(self) -> None:
        """The end of the answer, if it was not an interim one."""
        if self._has_head and not self._complete and self._parser is not None:
            self._complete = True
            self._keep = self._parser.should_keep_alive()
