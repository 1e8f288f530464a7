"""Documents are cut by rules that have a version."""

import hashlib

import pytest

from contracts.memory.background import UnreadableFile
from contracts.memory.documents import DocumentPart
from contracts.memory.settings import ChunkSettings
from services.memory import chunking
from services.memory.chunking import cut, rules

SAMPLE = """---
title: А
---
Вступ.

# Перший ##
Абзац. Ще речення, довше за інші; і кінець! Чи ні? Так…

Підкреслений
заголовок
---
- пункт
  # у пункті

> # цитата

~~~
# код
~~~

<!--
# схований
-->

## Порожній
### Глибокий
{words}

Абзац над лінією
---
# Далі
# {long}
Олена
--
"""


def test_another_cut_has_another_version():
    """When this fails: raise VERSION, so that indexed files are cut again, and renew the digest."""
    text = SAMPLE.format(words="слово за словом " * 20, long="довгий " * 30)
    chunks = cut(
        [DocumentPart(text=text)], "a.md", ChunkSettings(most=100, overlap=20), tree="shared"
    )
    digest = hashlib.sha256(repr(chunks).encode()).hexdigest()[:16]
    assert (chunking.VERSION, digest) == (1, "68689df70a366d29")


def test_rules_differ_by_sizes_and_kind_of_file():
    size = ChunkSettings(most=100, overlap=20)
    assert rules("a.md", size, "") == rules("folder/b.MARKDOWN", size, "")
    others = [
        rules("a.txt", size, ""),
        rules("a.docx", size, "mammoth 1"),
        rules("a.docx", size, "mammoth 2"),
        rules("a.md", ChunkSettings(most=101, overlap=20), ""),
        rules("a.md", ChunkSettings(most=100, overlap=21), ""),
    ]
    assert len({rules("a.md", size, ""), *others}) == 6
    assert rules("a.md", size, "mammoth 1") == rules("a.md", size, "mammoth 2")


def test_headings_that_are_repeated_do_not_make_a_small_document_a_large_one(
    monkeypatch: pytest.MonkeyPatch,
):
    headings = "".join(f"{'#' * level} {'x' * 195}\n" for level in range(1, 6))
    parts = [DocumentPart(text=headings + "###### a\nb\n" * 1_200)]
    with pytest.raises(UnreadableFile, match="too many sections"):
        cut(parts, "a.md", ChunkSettings(), tree="shared")
    monkeypatch.setattr(chunking, "MIN_ROOM", 2 << 20)
    assert len(cut(parts, "a.md", ChunkSettings(), tree="shared")) == 1_200


def test_a_document_has_a_bounded_number_of_chunks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chunking, "MAX_CHUNKS", 3)
    pages = [DocumentPart(text="x", page=number) for number in range(1, 5)]
    assert len(cut(pages[:3], "a.pdf", ChunkSettings(), tree="shared")) == 3
    with pytest.raises(UnreadableFile, match="too many sections"):
        cut(pages, "a.pdf", ChunkSettings(), tree="shared")
