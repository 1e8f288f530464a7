"""Reads LoCoMo and LongMemEval in their published formats. docs/evaluation.md has the protocol.

A LoCoMo record is a conversation with its questions; a LongMemEval record is a question with the
chat sessions before it. Both become a `Conversation`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError

LOCOMO_CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop"}
"""By the dataset's own scoring code; its paper lists the categories in another order."""
ADVERSARIAL = 5
ABSTENTION = "_abs"
"""Ends the id of a LongMemEval question that the sessions do not answer."""
BETWEEN_TURNS = timedelta(minutes=1)

_LOCOMO_TIME = "%I:%M %p on %d %B, %Y"
_LONGMEMEVAL_TIME = "%Y/%m/%d (%a) %H:%M"
_SESSION = re.compile(r"session_(\d+)")
_EVIDENCE = re.compile(r"D:?(\d+):(\d+)")
"""A turn in LoCoMo's evidence, which also has `D8:6; D9:17`, `D:11:26` and `D30:05`."""


class DatasetError(Exception):
    """The file is not in either format; the message says where."""


@dataclass(frozen=True)
class Turn:
    """One message; `id` is unique in its conversation, `text` is `Name: what was said`."""

    id: str
    session: str
    text: str
    at: datetime


@dataclass(frozen=True)
class Question:
    """A question with its evidence: the turns, and the sessions. `turns` may be empty where the
    dataset marks sessions alone.
    """

    text: str
    category: str
    turns: frozenset[str]
    sessions: frozenset[str]
    asked_at: datetime | None = None


@dataclass(frozen=True)
class Conversation:
    """Turns in their order and the questions about them. `left_out` counts what is not asked."""

    id: str
    turns: list[Turn]
    questions: list[Question]
    left_out: Counter[str]


class _LocomoTurn(BaseModel):
    speaker: str
    dia_id: str
    text: str = ""
    blip_caption: str | None = None


class _LocomoQuestion(BaseModel):
    question: str
    category: Literal[1, 2, 3, 4, 5]
    evidence: list[str] = []


class _Locomo(BaseModel):
    sample_id: str
    conversation: dict[str, Any]
    qa: list[_LocomoQuestion]


class _ChatTurn(BaseModel):
    role: str
    content: str
    has_answer: bool | None = None


class _LongMemEval(BaseModel):
    question_id: str
    question_type: str
    question_date: str
    question: str
    haystack_session_ids: list[str]
    haystack_dates: list[str]
    haystack_sessions: list[list[_ChatTurn]]
    answer_session_ids: list[str]


_LOCOMO_TURNS = TypeAdapter(list[_LocomoTurn])


def read_conversations(path: Path) -> list[Conversation]:
    """Returns the conversations of a file in either format.

    Raises:
        DatasetError: the file cannot be read, or is in neither format.
    """
    try:
        data = orjson.loads(path.read_bytes())
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from None
    except orjson.JSONDecodeError as error:
        raise DatasetError(f"{path}: is not JSON: {error}") from None
    records = data if isinstance(data, list) else [data]
    if not records:
        raise DatasetError(f"{path}: holds no records")
    found = []
    for number, record in enumerate(records, 1):
        try:
            found.append(_conversation(record))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise DatasetError(f"{path}: record {number}: {where}: {first['msg']}") from None
        except DatasetError as error:
            raise DatasetError(f"{path}: record {number}: {error}") from None
    return found


def _conversation(record: Any) -> Conversation:
    if isinstance(record, dict) and "conversation" in record:
        return _from_locomo(_Locomo.model_validate(record))
    if isinstance(record, dict) and "haystack_sessions" in record:
        return _from_longmemeval(_LongMemEval.model_validate(record))
    raise DatasetError(
        "is neither of LoCoMo (`conversation`, `qa`) nor of LongMemEval (`haystack_sessions`)"
    )


def _from_locomo(given: _Locomo) -> Conversation:
    turns = list(_locomo_turns(given.conversation))
    sessions = {turn.id: turn.session for turn in turns}
    questions, left_out = [], Counter[str]()
    for one in given.qa:
        named = {
            f"D{int(session)}:{int(turn)}"
            for session, turn in _EVIDENCE.findall(" ".join(one.evidence))
        }
        evidence = frozenset(named & sessions.keys())
        if one.category == ADVERSARIAL:
            left_out["adversarial"] += 1
        elif not evidence:
            left_out["without evidence"] += 1
        else:
            category = f"{one.category} {LOCOMO_CATEGORIES[one.category]}"
            where = frozenset(sessions[turn] for turn in evidence)
            questions.append(Question(_storable(one.question), category, evidence, where))
    return Conversation(given.sample_id, turns, questions, left_out)


def _locomo_turns(conversation: Mapping[str, Any]) -> Iterator[Turn]:
    numbers = sorted(int(match[1]) for key in conversation if (match := _SESSION.fullmatch(key)))
    for number in numbers:
        name = f"session_{number}"
        try:
            said = _LOCOMO_TURNS.validate_python(conversation[name])
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in (name, *first["loc"]))
            raise DatasetError(f"conversation.{where}: {first['msg']}") from None
        if not said:
            continue
        key = f"{name}_date_time"
        began = _moment(conversation.get(key), _LOCOMO_TIME, f"conversation.{key}")
        for place, turn in enumerate(said):
            text = turn.text.strip()
            if turn.blip_caption:
                text = f"{text} [image: {turn.blip_caption}]".strip()
            if text:
                line = _storable(f"{turn.speaker}: {text}")
                yield Turn(turn.dia_id, str(number), line, began + place * BETWEEN_TURNS)


def _from_longmemeval(given: _LongMemEval) -> Conversation:
    parts = (given.haystack_session_ids, given.haystack_dates, given.haystack_sessions)
    if len({len(part) for part in parts}) > 1:
        raise DatasetError(
            "haystack_session_ids, haystack_dates and haystack_sessions differ in length"
        )
    moments = [
        _moment(date, _LONGMEMEVAL_TIME, f"haystack_dates.{place}")
        for place, date in enumerate(given.haystack_dates)
    ]
    turns, answers = [], set()
    # The file with the evidence alone is not sorted by time; a filler session may come twice.
    for number in sorted(range(len(moments)), key=moments.__getitem__):
        session = given.haystack_session_ids[number]
        for place, said in enumerate(given.haystack_sessions[number]):
            if not said.content.strip():
                continue
            line = _storable(f"{said.role.capitalize()}: {said.content}")
            name = f"{number + 1}:{place + 1}"
            turns.append(Turn(name, session, line, moments[number] + place * BETWEEN_TURNS))
            if said.has_answer and session in given.answer_session_ids:
                answers.add(name)
    asked_at = _moment(given.question_date, _LONGMEMEVAL_TIME, "question_date")
    sessions = frozenset(given.answer_session_ids) & {turn.session for turn in turns}
    # A question is asked about what was said before it: the rest cannot be found.
    earlier = [turn for turn in turns if turn.at < asked_at]
    evidence = sessions & {turn.session for turn in earlier}
    found = answers & {turn.id for turn in earlier}
    questions, left_out = [], Counter[str]()
    if given.question_id.endswith(ABSTENTION):
        left_out["abstention"] += 1
    else:
        left_out["late evidence turns"] = len(answers - found)
        left_out["late evidence sessions"] = len(sessions - evidence)
        left_out["without evidence"] = int(not evidence)
        if evidence:
            text = _storable(given.question)
            questions.append(
                Question(text, given.question_type, frozenset(found), evidence, asked_at)
            )
    return Conversation(given.question_id, turns, questions, +left_out)


def _moment(value: Any, form: str, where: str) -> datetime:
    try:
        return datetime.strptime(value, form).replace(tzinfo=UTC)
    except (TypeError, ValueError):
        example = datetime(2023, 5, 8, 13, 56, tzinfo=UTC).strftime(form)
        raise DatasetError(f"{where}: {value!r} is no time like {example!r}") from None


def _storable(text: str) -> str:
    """Without what memory refuses: NUL and lone surrogates."""
    return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
