"""Evidence from where something was said: beside what, in which session, by whom and when. Pure.

`fuse` scores each item alone. A turn of a conversation is understood from the turns around it: an
answer leaves out what the question said. Scores are turned into evidence `x = −ln(1 − score)`, in
which fusion adds up. To it come parts of the neighbours' evidence and of the session's best; then
it is multiplied where speaker or time fit the question. `score = 1 − e^−x` is in 0..1 again.

An item that stands alone keeps its score: of the session's best it is drawn to, it is itself the
best. An item without evidence of its own or of a neighbour has none. Sections of a document are
treated as turns, with the document as the session.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import groupby, islice
from typing import NamedTuple
from zoneinfo import ZoneInfo

from common.alphabet import one_alphabet
from contracts.memory.ports import Passage
from contracts.memory.settings import FusionSettings
from services.memory.fusion import FusedItem, dense_evidence
from services.memory.periods import Period, asks_when, holds_time, periods

CENTRES = 30
"""The best items whose neighbours are looked at."""
GAP = timedelta(hours=4)
"""Turns further apart belong to different sessions."""


class Flow(NamedTuple):
    """Parts of evidence that come from the passages beside, from those one further away, from a
    turn that asks to the one that answers, and of what the session's best has beyond its own.
    """

    beside: float
    further: float
    answers: float
    session: float


TURNS = Flow(0.15, 0.08, 0.4, 1 / 3)
SECTIONS = Flow(0.1, 0.0, 0.1, 0.2)
SPEAKER = 1.5
DATED = 1.0
DATED_ALONE = 0.05
"""What a fitting date adds, so that it counts beside little evidence, too."""
WHEN = 1.4
ONLY_ASKS = 0.6
_NEARNESS = (
    (timedelta(0), timedelta(0), 1.0),
    (timedelta(days=10), timedelta(0), 0.8),
    (timedelta(days=31), timedelta(0), 0.5),
    (timedelta(0), timedelta(days=7), 0.3),
)
"""How long after the end of a period, and before its beginning, a turn still fits how well."""
LONG_AGO = timedelta(days=60)
READ_CHARS = 900
"""Of a turn: more are not searched for a time."""
LONGEST_ENDING = 3
MOST_NAMES = 32
_APOSTROPHES = dict.fromkeys(map(ord, "'’ʼ`"))
_VOWELS = "aeiouяю"
_MOST = 1 - 1e-9
_SPEAKER = re.compile(r"\s{0,3}([^\W\d_][\w.'’ -]{0,40}?)\s{0,3}:\s")
_WORD = re.compile(r"[^\W\d_][\w'’-]*")
_ASKS = re.compile(r"\?[\W_]*$")
_SAYS = re.compile(r"[.!…]\s")


@dataclass(frozen=True)
class Asked:
    """What a question says of people and time.

    `names` are its capitalised words as `_plain` spells them, `periods` those that it names, `when`
    that it asks for a time.
    """

    names: Sequence[str]
    periods: Sequence[Period]
    when: bool


def asked_of(
    question: str, now: datetime, zone: ZoneInfo, passages: Sequence[Passage] = ()
) -> Asked:
    """Returns what the question says.

    Dates are read as of `now` in `zone`; where no turn fits them and the newest one is older than
    `LONG_AGO`, as of that turn: in a conversation that ended years ago, "in May" is its last May.
    """
    words = (match[0] for match in _WORD.finditer(question))
    names = [_plain(word) for word in islice((w for w in words if w[0].isupper()), MOST_NAMES)]
    named = periods(question, now, zone)
    moments = [passage.created_at for passage in passages if passage.kind == "conversation"]
    newest = max(moments, default=now)
    if newest < now - LONG_AGO and not any(_dated(moment, named) for moment in moments):
        named = periods(question, newest, zone)
    return Asked(names, named, asks_when(question))


def structured(
    fused: Sequence[FusedItem],
    passages: Sequence[Passage],
    asked: Asked,
    settings: FusionSettings,
) -> list[FusedItem]:
    """Returns the items, and neighbours that gained evidence, best first; the best of equal texts.

    `passages` are by group and in order, with all neighbours of the first `CENTRES` items.
    """
    evidence = {entry.id: _evidence(entry.score) for entry in fused}
    for passage in passages:
        if passage.id not in evidence:
            alone = dense_evidence(passage.cosine or 0.0, settings.unrelated)
            evidence[passage.id] = _evidence(alone)
    centres = {entry.id for entry in fused[:CENTRES]}
    gained = dict(evidence)
    for _, members in groupby(passages, lambda passage: passage.group):
        for session in _sessions(list(members)):
            gained |= _within(session, evidence, centres)
    for passage in passages:
        if passage.kind == "conversation":
            gained[passage.id] = _fitted(gained[passage.id], passage, asked)
    ranks = {entry.id: entry.ranks for entry in fused}
    found = [
        FusedItem(name, -math.expm1(-x), ranks.get(name, {}))
        for name, x in gained.items()
        if x > 0 or name in ranks
    ]
    order = {entry.id: place for place, entry in enumerate(fused)}
    found.sort(key=lambda item: (-item.score, order.get(item.id, len(order)), item.id))
    texts = {passage.id: " ".join(passage.text.split()) for passage in passages}
    first: dict[str, FusedItem] = {}
    for item in found:
        first.setdefault(texts.get(item.id, item.id), item)
    return list(first.values())


def _evidence(score: float) -> float:
    return -math.log1p(-min(score, _MOST))


def _within(
    session: Sequence[Passage], evidence: Mapping[str, float], centres: set[str]
) -> dict[str, float]:
    """Returns the evidence of a session's passages with what their neighbours and the best add."""
    gained = {}
    is_talk = session[0].kind == "conversation"
    beside, further, answers, drawn = TURNS if is_talk else SECTIONS
    asks = [_asks(passage) for passage in session]
    for place, passage in enumerate(session):
        x = evidence[passage.id]
        for step, part in ((-2, further), (-1, beside), (1, beside), (2, further)):
            if not 0 <= place + step < len(session):
                continue
            other = session[place + step]
            near = abs(other.created_at - passage.created_at) <= GAP
            if near and (passage.id in centres or other.id in centres):
                is_answer = step == -1 and asks[place - 1] and not asks[place]
                x += (answers if is_answer else part) * evidence[other.id]
        gained[passage.id] = x
    best = max(gained.values())
    return {name: x and (1 - drawn) * x + drawn * best for name, x in gained.items()}


def _sessions(passages: Sequence[Passage]) -> list[list[Passage]]:
    """Cuts a group's passages where a long time passed; a document is one session."""
    sessions: list[list[Passage]] = []
    for passage in passages:
        if sessions and passage.created_at - sessions[-1][-1].created_at <= GAP:
            sessions[-1].append(passage)
        else:
            sessions.append([passage])
    return sessions


def _fitted(x: float, passage: Passage, asked: Asked) -> float:
    """Returns a turn's evidence `x` with what its speaker, time and form make of it."""
    if not x:
        return x
    dated = _dated(passage.created_at, asked.periods)
    x *= 1 + DATED * dated
    if asked.names and (speaker := speaker_of(passage.text)) and is_named(speaker, asked.names):
        x *= SPEAKER
    if asked.when and holds_time(passage.text[:READ_CHARS]):
        x *= WHEN
    if _asks(passage) and not _SAYS.search(passage.text):
        x *= ONLY_ASKS
    return x + DATED_ALONE * dated


def _dated(moment: datetime, named: Sequence[Period]) -> float:
    """Returns how well a moment fits the periods: what happened is told during it or after."""
    fit = 0.0
    for period in named:
        late, early = moment - period.end, period.begin - moment
        for after, before, part in _NEARNESS:
            if late < after and early <= before:
                fit = max(fit, part)
                break
    return fit


def _asks(passage: Passage) -> bool:
    return _ASKS.search(passage.text[-40:]) is not None


def speaker_of(text: str) -> str | None:
    """Returns the name before a leading colon: `Оксана: Завтра буду` was said by Оксана."""
    found = _SPEAKER.match(text)
    return found and found[1]


def is_named(speaker: str, names: Sequence[str]) -> bool:
    """Whether one of the names, in plain spelling, is the speaker's in any case (Яринці)."""
    return any(
        given.startswith(stem) and len(given) <= longest
        for stem, longest in _stems(speaker)
        for given in names
    )


@lru_cache(maxsize=1_024)
def _stems(speaker: str) -> list[tuple[str, int]]:
    """Returns the words of a name as stems, with the longest form of each."""
    parts = speaker.split()
    words = [_plain(word) for word in parts if word[0].isupper()] or [
        _plain(word) for word in parts
    ]
    return [(_stem(word), len(word) + LONGEST_ENDING) for word in words]


def _stem(name: str) -> str:
    """Returns a name without what declension changes: last vowels, a к before (Яринка, Яринці)."""
    bare = name.rstrip(_VOWELS)
    stem = bare if bare == name else bare.rstrip("kgh")
    return stem if len(stem) > 1 else name


def _plain(name: str) -> str:
    return one_alphabet(name.casefold().translate(_APOSTROPHES))
