"""Joins the broken answer of one model and the continuation of another. Pure.

    the continuation begins with            result
    the whole shown text                    the repetition is dropped, the rest is shown
    the end of the shown text               the overlap is dropped, the rest is shown
    the shown text, and then differs        an error: it started over
    a remark, and then the shown text       an error: it started over
    anything else                           it is shown

Shown text cannot be taken back, so an answer that starts over in other words cannot follow it. An
endpoint that continues the same message may repeat rows and refrains on purpose: for it only the
first two rows apply, and they need a longer match.
"""

from __future__ import annotations

from contracts.errors import UpstreamInvalidResponse

REPEATED = 12
"""Characters in common with the shown text that are more than chance."""
REPEATED_IN_PLACE = 48
"""The same for an endpoint that continues the same message."""
HEAD = 24
WATCHED = 600
"""Characters of a continuation in which the first `HEAD` of the shown text are searched."""
TAIL = 2_000
"""The longest overlap with the end of the shown text."""


class Seam:
    """Joins the pieces of a continuation to the text that was shown, without trailing white space.

    `in_words`: a message asked the model to continue. A piece is held back while it may be a
    repetition.
    """

    def __init__(self, shown: str, *, in_words: bool) -> None:
        self._shown = shown
        self._tail = shown[-TAIL:]
        self._in_words = in_words
        self._held = ""
        self._joined = False
        self._watched = ""
        self._watches = False

    def feed(self, piece: str) -> str:
        """Returns the text that can be shown now.

        Raises UpstreamInvalidResponse when the answer started over.
        """
        if self._joined:
            return self._watch(piece)
        self._held += piece
        begun = self._held.lstrip()
        if self._shown.startswith(begun) or (
            self._in_words and len(begun) < TAIL and begun in self._tail
        ):
            return ""
        return self._watch(self._join(begun))

    def finish(self) -> str:
        """Returns the text that was held back. Raises as `feed`."""
        return "" if self._joined else self._watch(self._join(self._held.lstrip()))

    def _join(self, begun: str) -> str:
        self._joined = True
        pairs = enumerate(zip(begun, self._shown, strict=False))
        head = next(
            (place for place, (one, other) in pairs if one != other),
            min(len(begun), len(self._shown)),
        )
        if head == len(self._shown) and (self._in_words or head >= REPEATED):
            return begun[head:]
        repeated = overlap(self._tail, begun) if self._in_words else 0
        if repeated >= max(REPEATED, head):
            return begun[repeated:]
        if head >= (REPEATED if self._in_words else REPEATED_IN_PLACE):
            raise _started_over()
        self._watches = self._in_words and len(self._shown) >= HEAD
        return self._held

    def _watch(self, text: str) -> str:
        if self._watches:
            self._watched += text
            self._watches = len(self._watched) < WATCHED
            if self._shown[:HEAD] in self._watched:
                raise _started_over()
        return text


def overlap(text: str, beginning: str) -> int:
    """Returns how many characters at the end of `text` may be the start of `beginning`."""
    sizes = range(min(len(text), len(beginning)), 0, -1)
    return next((size for size in sizes if text.endswith(beginning[:size])), 0)


def _started_over() -> UpstreamInvalidResponse:
    return UpstreamInvalidResponse(
        "the answer broke off, and the model that was asked to finish it started over: retry"
    )
