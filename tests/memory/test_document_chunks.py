"""Documents are cut by rules that have a version."""

import hashlib

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
