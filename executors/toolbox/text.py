"""Tools about texts."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

MAX_CHARS = 1_000_000
# Words a minute (Brysbaert 2019: 238 for English prose; Ukrainian words are longer).
WORDS_A_MINUTE = {"en": 238, "uk": 200}
DEFAULT_WORDS_A_MINUTE = 220

_WORD = re.compile(r"[^\W\d_]+(?:['’ʼ\-][^\W\d_]+)*")
_SENTENCE_END = re.compile(r"[.!?…]+(?=\s|$)")
_UKRAINIAN_ONLY = set("іїєґ")
_RUSSIAN_ONLY = set("ыэёъ")
_ENGLISH = (
    "a about after all also an and any are as at be because been but by can could did do does for "
    "from had has have he her his how i if in into is it its just me more my no not of on one or "
    "our out she should so some than that the their them then there these they this to up us was "
    "we were what when which who will with would you your "
)
_UKRAINIAN = (
    "а або але б би бо був буде було були в вас вже ви від він вона вони все всі для до є же з за "
    "зі і й із їх її його коли ли лише ми може можна на над нам нас не нема немає ні ну о об один "
    "під по при про саме себе собі та так також такий там те ти тим то тобто тому тут у усе усі "
    "це цей ці цього чи що щоб ще я як яка яке який які якщо "
)
_STOP_WORDS = {"en": frozenset(_ENGLISH.split()), "uk": frozenset(_UKRAINIAN.split())}


def summary_stats(args: dict[str, Any], _context: dict[str, Any]) -> dict[str, Any]:
    """Returns a text's counts, reading time, language (`uk`, `en`, `unknown`) and frequent words.

    Args:
        args: `text`, and optionally `top` (how many words, 0 to 50, default 5).

    Raises:
        ValueError: `text` is missing, not a text or too long, or `top` is out of range.
    """
    text, top = args.get("text"), args.get("top", 5)
    if not isinstance(text, str) or len(text) > MAX_CHARS:
        raise ValueError(f"`text` must be a text of at most {MAX_CHARS} characters")
    if isinstance(top, float) and top.is_integer():
        top = int(top)  # in JSON Schema 5.0 is an integer
    if not isinstance(top, int) or isinstance(top, bool) or not 0 <= top <= 50:
        raise ValueError("`top` must be a whole number from 0 to 50")
    words = [word.lower().replace("’", "'").replace("ʼ", "'") for word in _WORD.findall(text)]
    language = guess_language(words)
    return {
        "characters": len(text),
        "words": len(words),
        "unique_words": len(set(words)),
        "sentences": _sentences(text) if words else 0,
        "paragraphs": sum(1 for block in re.split(r"\n\s*\n", text) if block.strip()),
        "average_word_length": round(sum(map(len, words)) / len(words), 2) if words else 0.0,
        "reading_time_s": math.ceil(
            60 * len(words) / WORDS_A_MINUTE.get(language, DEFAULT_WORDS_A_MINUTE)
        ),
        "language": language,
        "top_words": [
            {"word": word, "count": count} for word, count in _frequent(words, language, top)
        ],
    }


def guess_language(words: list[str]) -> str:
    """Returns `uk`, `en` or `unknown`, by alphabet, distinctive letters and common words."""
    letters = Counter("".join(words))
    latin = sum(count for letter, count in letters.items() if "a" <= letter <= "z")
    cyrillic = sum(count for letter, count in letters.items() if "Ѐ" <= letter <= "ӿ")
    common = {
        language: sum(word in known for word in words) for language, known in _STOP_WORDS.items()
    }
    if cyrillic > latin:
        foreign = sum(letters[letter] for letter in _RUSSIAN_ONLY)
        own = sum(letters[letter] for letter in _UKRAINIAN_ONLY)
        return "uk" if own > foreign or (not foreign and common["uk"]) else "unknown"
    return "en" if latin and common["en"] * 12 >= len(words) else "unknown"


def _sentences(text: str) -> int:
    """Counts the ends of sentences, and a last sentence without one."""
    ends = len(_SENTENCE_END.findall(text))
    tail = _SENTENCE_END.split(text)[-1]
    return ends + bool(_WORD.search(tail))


def _frequent(words: list[str], language: str, top: int) -> list[tuple[str, int]]:
    skipped = _STOP_WORDS.get(language, frozenset())
    counted = Counter(word for word in words if word not in skipped and len(word) > 1)
    return sorted(counted.items(), key=lambda entry: (-entry[1], entry[0]))[:top]
