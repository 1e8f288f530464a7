"""Reads the events of a streamed answer: finds its end, and bounds how long each wait may be."""

from __future__ import annotations

from common.http.errors import AnswerTooLarge, HttpError
from contracts.deadline import Deadline
from contracts.llm.routing import Target
from providers.shapes import StreamParser
from providers.sse import SSEDecoder
from providers.transport import HttpExchange

MAX_ANSWER_BYTES = 32 << 20
DONE = b"[DONE]"
USAGE_GRACE_S = 2.0
"""How long a stream is held open for its usage after the finish reason: not every upstream closes
or sends [DONE].
"""
DETAILS_GRACE_S = 0.25
"""How long one is held open after a usage without details: vLLM sends the cached tokens in a second
one.
"""


class StreamClock:
    """Bounds each wait of a stream: to the first content token, then between tokens, always to the
    deadline.

    Only content moves it on, so that keep-alive frames do not keep a silent stream open.
    """

    def __init__(self, target: Target, deadline: Deadline) -> None:
        self._timeouts = target.timeouts
        self._deadline = deadline
        self._until = Deadline.after(target.timeouts.begin_s())

    def content(self) -> None:
        """Notes that content arrived."""
        self._until = Deadline.after(self._timeouts.idle_s)

    def expires_at(self, grace: Deadline | None = None) -> float:
        """Returns the end of the next wait, in monotonic seconds; `grace` replaces the bound
        between tokens.
        """
        return min(self._deadline.at, (grace or self._until).at)

    def limit_s(self) -> float:
        """Returns the seconds until then."""
        return self._deadline.at_most(self._until.remaining())

    @property
    def bound_s(self) -> float:
        """How long the wait may be in all."""
        return min(self._deadline.seconds, self._until.seconds)


class EventStream:
    """Ends at `[DONE]` (then it is `marked`), at the end of the body, or with the grace after the
    finish reason.
    """

    def __init__(self, exchange: HttpExchange, parser: StreamParser, clock: StreamClock) -> None:
        self._exchange = exchange
        self._parser = parser
        self._clock = clock
        self._decoder = SSEDecoder()
        self._size = 0
        self._grace: Deadline | None = None
        self._counted = False
        self.ended = False
        self.marked = False

    async def next(self) -> list[bytes]:
        """Returns the payloads that arrived next, possibly none. Raises HttpError if the answer is
        unfinished.
        """
        if self._parser.finish_reason and self._grace is None:
            self._grace = Deadline.after(USAGE_GRACE_S)
        if self._parser.counted_at_end and not self._counted:
            self._counted = True
            self._grace = Deadline.after(0 if self._parser.has_details else DETAILS_GRACE_S)
        if self._grace is not None and self._grace.remaining() <= 0:
            self.ended = True
            return []
        self._exchange.expires_at = self._clock.expires_at(self._grace)
        try:
            chunk = await self._exchange.read()
        except HttpError:
            if not self._parser.finish_reason:
                raise
            self.ended = True
            return []
        self._size += len(chunk)
        if self._size > MAX_ANSWER_BYTES:
            raise AnswerTooLarge
        self.ended = not chunk
        return self._before_done(self._decoder.feed(chunk) if chunk else self._decoder.finish())

    def _before_done(self, payloads: list[bytes]) -> list[bytes]:
        for place, payload in enumerate(payloads):
            if payload.strip() == DONE:
                self.ended = self.marked = True
                return payloads[:place]
        return payloads
