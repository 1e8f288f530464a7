"""Server-Sent Events, the part that upstreams use: bytes in, `data` payloads out. No I/O."""

from __future__ import annotations

from contracts.errors import UpstreamInvalidResponse

MAX_EVENT_BYTES = 4 << 20
_BOM = b"\xef\xbb\xbf"


class SSEDecoder:
    """Splits a byte stream into event payloads, however the bytes were cut.

    Follows the event stream format of the HTML standard for `data` fields: CRLF or LF, several `data:` lines joined
    by a newline, comments and other fields passed over.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max = max_event_bytes
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0
        self._started = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Returns the payloads that `chunk` completes.

        Raises:
            UpstreamInvalidResponse: one event is over the bound.
        """
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > self._max:
            raise _oversized(self._max)
        return [payload for line in lines if (payload := self._take(line)) is not None]

    def finish(self) -> list[bytes]:
        """Returns the payload that was left without its closing blank line, if any."""
        rest, self._rest = self._rest, b""
        self._take(rest)
        last = self._take(b"")
        return [] if last is None else [last]

    def _take(self, line: bytes) -> bytes | None:
        if not self._started:
            self._started, line = True, line.removeprefix(_BOM)
        line = line.removesuffix(b"\r")
        if not line:
            payload = b"\n".join(self._data) if self._data else None
            self._data, self._size = [], 0
            return payload
        if line.startswith(b"data:"):
            self._size += len(line)
            if self._size > self._max:
                raise _oversized(self._max)
            self._data.append(line[5:].removeprefix(b" "))
        return None


def _oversized(limit: int) -> UpstreamInvalidResponse:
    return UpstreamInvalidResponse(f"the provider sent an event of over {limit >> 20} MiB")
