"""Reads the gold set and assigns questions to slices."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import yaml

from backends.memory.lexicon.grams import words
from backends.memory.lexicon.lemmas import STOP_WORDS
from contracts.memory.items import text_of

FOLDER = Path(__file__).parent
Lang = Literal["uk", "en"]


@dataclass(frozen=True)
class GoldItem:
    """One memory, with its content as `/store` takes it."""

    id: str
    kind: str
    lang: Lang
    content: dict[str, str]
    created_at: datetime
    channel_id: str | None = None

    @property
    def text(self) -> str:
        """The content as one text, as it is stored."""
        return text_of(self.content)


@dataclass(frozen=True)
class GoldQuery:
    """One question, its answers, and the slices it belongs to."""

    id: str
    lang: Lang
    text: str
    relevant: frozenset[str]
    slices: frozenset[str]
    asked_at: datetime | None = None


@dataclass(frozen=True)
class GoldSet:
    """A whole set."""

    items: tuple[GoldItem, ...]
    queries: tuple[GoldQuery, ...]


def load_gold(name: str = "memory") -> GoldSet:
    """Returns the set in `<name>.jsonl`, or the conversations in `<name>.yaml`."""
    if name.startswith("conversations"):
        return _conversations(FOLDER / f"{name}.yaml")
    with (FOLDER / f"{name}.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    items = tuple(_item(row) for row in rows if row["type"] == "item")
    by_id = {item.id: item for item in items}
    return GoldSet(items, tuple(_query(row, by_id) for row in rows if row["type"] == "query"))


def content_words(text: str) -> set[str]:
    """Returns the words of `text` that carry meaning, normalised."""
    return {
        word for word in words(text) if word not in STOP_WORDS and (len(word) > 1 or word.isdigit())
    }


def stem(word: str) -> str:
    """Returns a rough stem; words with different stems count as different words."""
    if word.isdigit():
        return word
    return word[:5] if len(word) > 6 else word[: max(3, len(word) - 1)]


def slices_of(query: str, lang: Lang, answers: Iterable[GoldItem]) -> frozenset[str]:
    """Returns the slices of a question.

    `uk`, `en`: question and answer in that language; `cross`: in two languages;
    `no-shared-word`: no content word of the question is in the answer in any form; `inflected`: one
    language, and most of the shared words are in the answer in another form.
    """
    found = list(answers)
    asked = content_words(query)
    given = set().union(*(content_words(item.text) for item in found))
    same = asked & given
    stems = {stem(word) for word in given}
    other_form = {word for word in asked - same if stem(word) in stems}
    names = {lang if all(item.lang == lang for item in found) else "cross"}
    if not same and not other_form:
        names.add("no-shared-word")
    if "cross" not in names and other_form and len(other_form) >= len(same):
        names.add("inflected")
    return frozenset(names)


def _item(row: dict[str, Any]) -> GoldItem:
    return GoldItem(
        row["id"],
        row["kind"],
        row["lang"],
        row["content"],
        datetime.fromisoformat(row["created_at"]),
    )


def _conversations(file: Path) -> GoldSet:
    """Returns each turn as a memory of its conversation's channel.

    Questions belong to the slices that they name, too: `speaker`, `date`, `follow-up` and so on.
    """
    given = yaml.safe_load(file.read_text(encoding="utf-8"))
    items = {
        item.id: item for conversation in given["conversations"] for item in _turns(conversation)
    }
    queries = [
        replace(query, slices=query.slices | set(row["about"]), asked_at=row["asked_at"])
        for conversation in given["conversations"]
        for row in conversation["questions"]
        for query in [_query(row, items)]
    ]
    return GoldSet(tuple(items.values()), tuple(queries))


def _turns(conversation: Mapping[str, Any]) -> Iterator[GoldItem]:
    for session in conversation["sessions"]:
        moment = session["at"]
        for turn in session["turns"]:
            moment += timedelta(minutes=turn.get("after_min", 1))
            text = f"{turn['speaker']}: {turn['text']}"
            lang: Lang = "uk" if re.search("[а-яіїєґ]", turn["text"]) else "en"
            yield GoldItem(
                turn["id"], "conversation", lang, {"text": text}, moment, conversation["id"]
            )


def _query(row: dict[str, Any], items: dict[str, GoldItem]) -> GoldQuery:
    answers = [items[name] for name in row["relevant"]]
    return GoldQuery(
        row["id"],
        row["lang"],
        row["text"],
        frozenset(row["relevant"]),
        slices_of(row["text"], row["lang"], answers),
    )
