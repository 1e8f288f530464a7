"""Decodes Server-Sent Events as far as upstreams use them: bytes in, payloads out. Pure."""

from __future__ import annotations

from contracts.errors import UpstreamInvalidResponse

MAX_EVENT_BYTES = 4 << 20
_BOM = b"\xef\xbb\xbf"


class ErrorEvent(bytes):
    """The payload of an event named `error`, or of llama.cpp's field `error:`."""


class SSEDecoder:
    """Splits a byte stream into event payloads, however the bytes were cut.

    Follows the event stream format of the HTML standard for `data` fields: lines end with CR, LF or
    both, several `data:` lines are joined by a newline, comments and other fields are ignored,
    empty payloads dispatch nothing.

    A line that starts a JSON object or array is no field of the standard: some servers answer in
    JSON although events were requested. It is a payload, up to the next blank line.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max = max_event_bytes
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._started = self._after_cr = self._is_error = self._bare = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Returns the payloads that `chunk` completes.

        Raises:
            UpstreamInvalidResponse: one event is over the bound.
        """
        if self._is_one_event(chunk):
            self._started = True
            return [chunk[6:-2]]
        if self._after_cr and chunk:
            self._after_cr = False
            chunk = chunk.removeprefix(b"\n")  # the second half of a CR LF
        if b"\r" in chunk:
            self._after_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines: list[bytes] = []
        if b"\n" in chunk:
            *lines, rest = (bytes(self._rest) + chunk).split(b"\n")
            self._rest = bytearray(rest)
        else:
            self._rest += chunk  # in place: a line in many pieces is not copied for each
        if len(self._rest) > self._max:
            raise _oversized(self._max)
        return [payload for line in lines if (payload := self._take(line)) is not None]

    def _is_one_event(self, chunk: bytes) -> bool:
        """The common case: `chunk` is one whole event on one line, and nothing is left over."""
        return (
            chunk.startswith(b"data: {")
            and chunk.find(b"\n") == len(chunk) - 2
            and chunk.endswith(b"\n\n")
            and not (self._rest or self._data or self._after_cr or self._is_error)
            and b"\r" not in chunk
            and len(chunk) <= self._max
        )

    def finish(self) -> list[bytes]:
        """Returns the payload that lacks its closing blank line, if any."""
        rest, self._rest = bytes(self._rest), bytearray()
        return [payload for line in (rest, b"") if (payload := self._take(line)) is not None]

    def _take(self, line: bytes) -> bytes | None:
        if not self._started:
            self._started, line = True, line.removeprefix(_BOM)
        if not line:
            if self._data:
                return self._dispatched()
            self._is_error = False  # an event without data does not pass on its type
            return None
        if line.startswith(b"data:") and not self._bare:
            line = line[6:] if line.startswith(b" ", 5) else line[5:]
        elif self._bare or (not self._data and line.startswith((b"{", b"["))):
            self._bare = True
        elif line.startswith(b"error:"):
            self._is_error, line = True, line[6:]
        else:
            if line.startswith(b"event:"):
                self._is_error = line[6:].strip() == b"error"
            return None
        self._size += len(line)
        if self._size > self._max:
            raise _oversized(self._max)
        self._data.append(line)
        return None

    def _dispatched(self) -> bytes | None:
        payload = b"\n".join(self._data)
        self._data.clear()
        self._size, self._bare = 0, False
        if not payload or payload.isspace():
            self._is_error = False
            return None
        if self._is_error:
            self._is_error = False
            return ErrorEvent(payload)
        return payload


def _oversized(limit: int) -> UpstreamInvalidResponse:
    return UpstreamInvalidResponse(f"the provider sent an event of over {limit >> 20} MiB")
