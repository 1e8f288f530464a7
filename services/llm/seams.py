"""Joins the broken answer of one model and the continuation of another. Pure.

    the continuation begins                         what follows
    with all that was shown                         that is left out, the rest is shown
    with the end of what was shown                  the overlap is left out, the rest is shown
    like what was shown, and then differs           an error: it began anew
    with a remark, and then like what was shown     an error: it began anew
    otherwise                                       it is shown

What was shown cannot be taken back, so an answer that begins anew in other words cannot follow it.
An endpoint that continues the very message repeats rows and refrains on purpose: there only the
first two rows apply, from a longer match on.
"""

from __future__ import annotations

from contracts.errors import UpstreamInvalidResponse

REPEATED = 12
"""Letters that a continuation has in common with the shown text by more than chance."""
REPEATED_IN_PLACE = 48
"""The same for an endpoint that continues the very message."""
HEAD = 24
WATCHED = 600
"""How far into a continuation the first `HEAD` letters of the shown text are looked for."""
TAIL = 2_000
"""How much of the end of the shown text an overlap may hold."""


class Seam:
    """Joins the pieces of a continuation to the text that was shown, without trailing white space.

    `in_words` says that the model was asked in words to continue. A piece is held back while it may
    be a repetition.
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
        """Returns what may be shown by now.

        Raises UpstreamInvalidResponse where the answer began anew.
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
        """Returns what was held back. Raises as `feed`."""
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
        overlap = self._overlap(begun) if self._in_words else 0
        if overlap >= max(REPEATED, head):
            return begun[overlap:]
        if head >= (REPEATED if self._in_words else REPEATED_IN_PLACE):
            raise _began_anew()
        self._watches = self._in_words and len(self._shown) >= HEAD
        return self._held

    def _overlap(self, begun: str) -> int:
        return next(
            (
                size
                for size in range(min(len(begun), len(self._tail)), 0, -1)
                if self._tail.endswith(begun[:size])
            ),
            0,
        )

    def _watch(self, text: str) -> str:
        if self._watches:
            self._watched += text
            self._watches = len(self._watched) < WATCHED
            if self._shown[:HEAD] in self._watched:
                raise _began_anew()
        return text


def _began_anew() -> UpstreamInvalidResponse:
    return UpstreamInvalidResponse(
        "the answer broke off, and the model that was asked to finish it began anew: ask again"
    )
