"""Writes the gold sets: `python -m benchmarks.memory.gold.generate`.

`memory.jsonl`: facts and questions are written by hand (facts_*.yaml, questions.yaml), their near
misses come from templates.yaml. `second.jsonl` comes from second.yaml. The seed is fixed, so the
same sources give the same files.
"""

from __future__ import annotations

import json
import random
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
FACT_FILES = {"facts_uk.yaml": "uk", "facts_en.yaml": "en", "facts_docs.yaml": "uk"}
PER_TEMPLATE = 19
PER_SECOND = 40
SECOND_QUERIES = 150
MAX_ANSWERS = 5
SEED = 20_250_301
NEWEST = datetime(2025, 3, 1, 12, tzinfo=UTC)
SPAN_DAYS = 400
MAX_TRIES = 400

_SLOT = re.compile(r"\{([A-Za-z]+)(#2)?(?:\.([a-z]+))?\}")


def main() -> None:
    """Writes the files and prints how many items and queries they have."""
    for name, lines in (("memory", gold_lines()), ("second", second_lines())):
        path = FOLDER / f"{name}.jsonl"
        path.write_text(
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
        )
        counts = {kind: sum(line["type"] == kind for line in lines) for kind in ("item", "query")}
        print(f"{path.name}: {counts['item']} items, {counts['query']} queries")


def gold_lines() -> list[dict[str, Any]]:
    """Returns the lines of `memory.jsonl`: items in random order, then queries."""
    chance = random.Random(SEED)
    facts = [(fact, lang) for name, lang in FACT_FILES.items() for fact in _read(name)]
    further = _read("questions.yaml")
    items = [_item(fact["id"], lang, fact) for fact, lang in facts] + _near_misses(chance)
    chance.shuffle(items)
    for item in items:
        item["created_at"] = (
            NEWEST - timedelta(minutes=chance.randrange(SPAN_DAYS * 24 * 60))
        ).isoformat()
    queries = [
        {
            "type": "query",
            "id": f"{fact['id']}/{asked}{number}",
            "lang": asked,
            "text": text,
            "relevant": [fact["id"]],
        }
        for fact, _ in facts
        for asked in ("uk", "en")
        for number, text in enumerate(
            (*fact.get(asked, ()), *further.get(fact["id"], {}).get(asked, ())), 1
        )
    ]
    return items + queries


def second_lines() -> list[dict[str, Any]]:
    """Returns the lines of `second.jsonl`.

    A question's answers are all memories of its template that lead to the same question.
    """
    chance = random.Random(SEED)
    document = _read("second.yaml")
    items: list[dict[str, Any]] = []
    answers: dict[tuple[str, str], list[str]] = {}
    for number, template in enumerate(document["templates"]):
        seen: set[str] = set()
        for _ in range(MAX_TRIES):
            filled = _filled(template, document["vocabulary"], chance)
            key, index = json.dumps(filled, sort_keys=True), len(seen)
            if key in seen or index == PER_SECOND:
                continue
            seen.add(key)
            items.append(_item(f"second-{number:02}-{index:02}", template["lang"], filled))
            for question in filled["asks"]:
                answers.setdefault((template["lang"], question), []).append(items[-1]["id"])
    chance.shuffle(items)
    for item in items:
        item["created_at"] = (
            NEWEST - timedelta(minutes=chance.randrange(SPAN_DAYS * 24 * 60))
        ).isoformat()
    few = [entry for entry in answers.items() if len(entry[1]) <= MAX_ANSWERS]
    asked = [
        entry
        for lang in ("en", "uk")
        for entry in _some([entry for entry in few if entry[0][0] == lang], chance)
    ]
    return items + [
        {"type": "query", "id": f"second/{number}", "lang": lang, "text": text, "relevant": names}
        for number, ((lang, text), names) in enumerate(asked, 1)
    ]


def _some(entries: list[Any], chance: random.Random) -> list[Any]:
    return chance.sample(entries, min(SECOND_QUERIES, len(entries)))


def _near_misses(chance: random.Random) -> list[dict[str, Any]]:
    document = _read("templates.yaml")
    found = []
    for number, template in enumerate(document["templates"]):
        seen: set[str] = set()
        for _ in range(MAX_TRIES):
            if len(seen) == PER_TEMPLATE:
                break
            filled = _filled(template, document["vocabulary"], chance)
            key = json.dumps(filled, sort_keys=True)
            if key not in seen:
                seen.add(key)
                found.append(
                    _item(f"near-{number:03}-{len(seen):02}", template.get("lang", "uk"), filled)
                )
    return found


def _filled(
    template: dict[str, Any], vocabulary: dict[str, list[Any]], chance: random.Random
) -> dict[str, Any]:
    chosen = {name: chance.sample(entries, 2) for name, entries in vocabulary.items()}

    def value(slot: re.Match[str]) -> str:
        name, second, case = slot.groups()
        entry = chosen[name][1 if second else 0]
        return str(entry[case] if case else entry)

    def fill(text: Any) -> Any:
        return (
            [fill(part) for part in text]
            if isinstance(text, list)
            else _sentences(_SLOT.sub(value, text))
        )

    return {key: fill(text) for key, text in template.items() if key != "lang"}


def _sentences(text: str) -> str:
    """Capitalises the first letter of each sentence: a slot may stand there."""
    return re.sub(r"(^|[.?!] )(\w)", lambda found: found[1] + found[2].upper(), text)


def _item(name: str, lang: str, source: dict[str, Any]) -> dict[str, Any]:
    if "user" in source:
        content = {"user_message": source["user"], "agent_reply": source["reply"]}
    else:
        content = {"text": "\n".join(source[key] for key in ("title", "text") if key in source)}
    kind = source["kind"].lower()  # a slot capitalises the start of every text
    return {"type": "item", "id": name, "kind": kind, "lang": lang, "content": content}


def _read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
