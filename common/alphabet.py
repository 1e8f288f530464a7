"""Cyrillic and Latin spellings of one word, made comparable."""

from __future__ import annotations

_ONE_ALPHABET = str.maketrans(
    dict(zip("абвгґдеєёэзийіїыклмнопрстуфх", "abvggdeeeeziiiiiklmnoprstufh", strict=True))
    | {"ь": "", "ъ": "", "c": "k", "w": "v", "y": "i"}
)
"""The Latin counterpart of a Cyrillic letter; ж, ц, ч, ш, щ, ю and я have none and stay.

Latin letters that transcriptions use for one sound become one letter, in questions and in texts.
"""


def one_alphabet(word: str) -> str:
    """Returns a word in lower case with its Cyrillic letters replaced by Latin ones.

    Names and loanwords match: `мукачево` and `mukachevo`, `токен` and `token`.
    """
    return word.translate(_ONE_ALPHABET)
