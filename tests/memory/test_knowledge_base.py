"""The knowledge base: folders of Markdown and text on disk, searched through the application."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from backends.memory import documents
from backends.memory.areas import background_transaction, lock
from backends.postgres.pool import Database
from contracts.errors import DeadlineExceeded
from contracts.memory.background import DocumentChunk
from contracts.memory.ports import Area
from services.memory import chunking, indexing, sections
from tests.support.events import RecordedEvents
from tests.support.memory.application import SOFIA, STRANGER, Memory, eventually, succeeded
from tests.support.memory.hashing_embedder import HashingEmbedder

ROADMAP = """Вступ без заголовка.

# Дорожня карта

## Перший квартал
Запускаємо спільну касу.

```
# не заголовок
```

## Другий квартал

Відкриваємо бібліотеку інструментів.
"""


@pytest.fixture
def shared(memory: Memory) -> Path:
    folder = memory.data_dir / "kb" / "shared"
    folder.mkdir(parents=True)
    return folder


async def reindex(memory: Memory, **body: str) -> dict[str, object]:
    report = succeeded(await memory.post("/kb/reindex", body))
    await memory.store(
        "Позначка часу",
        {"agent_id": "agent:clock", "microdao_id": "microdao:clock"},
        meta={"n": os.urandom(4).hex()},
    )
    return {key: value for key, value in report.items() if value and key != "ok"}


async def embedded(embedder: HashingEmbedder, passages: int) -> None:
    """Waits for background embedding; fails for more than `passages`, too."""

    async def all_of_them() -> bool:
        return embedder.passages >= passages

    await eventually(all_of_them)
    assert embedder.passages == passages


async def hits(
    memory: Memory, query: str, tenant: dict[str, str] = SOFIA
) -> list[dict[str, object]]:
    return (await memory.query(query, tenant, kinds=["kb"]))["items"]


async def test_a_hit_names_file_heading_and_line(memory: Memory, shared: Path):
    (shared / "docs").mkdir()
    (shared / "docs" / "roadmap.md").write_text(ROADMAP, encoding="utf-8")
    assert await reindex(memory) == {"files": 1, "added": 1, "chunks": 3}
    first = (await hits(memory, "бібліотеку інструментів"))[0]
    assert first["kind"] == "kb"
    assert (
        first["content"] == "Дорожня карта > Другий квартал\nВідкриваємо бібліотеку інструментів."
    )
    meta = first["meta"]
    assert (meta["path"], meta["heading"], meta["line"]) == (
        "docs/roadmap.md",
        "Дорожня карта > Другий квартал",
        14,
    )
    assert meta["source"] == "kb:docs/roadmap.md"
    assert meta["memory"]["tier"] == "long-term"
    assert ROADMAP.splitlines()[meta["line"] - 1] == "Відкриваємо бібліотеку інструментів."
    assert "# не заголовок" in (await hits(memory, "спільну касу"))[0]["content"]


async def test_shared_is_for_all_and_a_folder_for_its_microdao(memory: Memory, shared: Path):
    (shared / "rules.txt").write_text("Правила спільні для всіх", encoding="utf-8")
    own = memory.data_dir / "kb" / "microdao" / "microdao%3A7"
    own.mkdir(parents=True)
    (own / "own.md").write_text("Правила сьомого мікроДАО", encoding="utf-8")
    await reindex(memory)
    assert {hit["content"] for hit in await hits(memory, "правила")} == {
        "Правила спільні для всіх",
        "Правила сьомого мікроДАО",
    }
    assert {hit["content"] for hit in await hits(memory, "правила", STRANGER)} == {
        "Правила спільні для всіх"
    }


async def test_runs_are_incremental(memory: Memory, shared: Path, embedder: HashingEmbedder):
    for name in ("a", "b", "c"):
        (shared / f"{name}.md").write_text(
            f"# {name}\nСторінка {name} про врожай", encoding="utf-8"
        )
    await reindex(memory)
    await embedded(embedder, 3 + 1)  # each section, and a marker per run
    assert await reindex(memory) == {"files": 3, "unchanged": 3}
    (shared / "a.md").rename(shared / "moved.md")
    (shared / "b.md").write_text(
        "# b\nСторінка b про врожай\n\n# Нове\nДодано про насіння", encoding="utf-8"
    )
    (shared / "c.md").unlink()
    os.utime(shared / "moved.md", (1, 1))
    assert await reindex(memory) == {
        "files": 2,
        "moved": 1,
        "changed": 1,
        "deleted": 1,
        "chunks": 1,
    }
    await embedded(embedder, 4 + 1 + 2)  # the new section, and the markers of two more runs
    found = {hit["meta"]["path"] for hit in await hits(memory, "сторінка про врожай")}
    assert found == {"moved.md", "b.md"}
    assert (await hits(memory, "насіння"))[0]["meta"]["heading"] == "Нове"


async def test_links_and_unreadable_files_are_refused_and_do_not_stop_the_run(
    memory: Memory, shared: Path, tmp_path: Path
):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.md").write_text("Зовнішня таємниця", encoding="utf-8")
    (shared / "link.md").symlink_to(outside / "secret.md")
    (shared / "folder").symlink_to(outside)
    (shared / "broken.md").write_bytes("Кирилиця".encode("cp1251"))
    (shared / "nul.txt").write_bytes(b"a\0b")
    (shared / "huge.txt").write_bytes(b"a" * (3 << 20))
    (shared / "image.png").write_bytes(b"\x89PNG")
    os.mkfifo(shared / "pipe.md")
    (shared / os.fsdecode(b"bad-\xff.md")).write_text("ім'я", encoding="utf-8")
    (shared / "good.md").write_text("Добрий документ", encoding="utf-8")
    report = await reindex(memory)
    refused = {entry["path"]: entry["reason"] for entry in report["refused"]}
    assert set(refused) == {
        "link.md",
        "folder",
        "broken.md",
        "nul.txt",
        "huge.txt",
        "pipe.md",
        "bad-?.md",
    }
    assert "symbolic link" in refused["link.md"]
    assert "UTF-8" in refused["broken.md"]
    assert report["added"] == 1
    assert [hit["content"] for hit in await hits(memory, "таємниця документ")] == [
        "Добрий документ"
    ]
    (shared / "good.md").write_bytes(b"\xff\xfe\xff")
    assert (await reindex(memory))["deleted"] == 1
    assert await hits(memory, "документ") == []


async def test_one_microdao_alone_and_hostile_names(memory: Memory):
    root = memory.data_dir / "kb" / "microdao"
    for name in ("microdao%3A7", "%2E%2E", "..%2F..", "plain"):
        (root / name).mkdir(parents=True)
        (root / name / "a.md").write_text(f"Документ {name}", encoding="utf-8")
    assert (await reindex(memory, microdao_id="microdao:7"))["files"] == 1
    for hostile in ("../../..", ".", "/etc", "microdao:7/../plain", "a" * 256):
        assert "files" not in await reindex(memory, microdao_id=hostile), hostile
    assert await hits(memory, "документ", {"agent_id": "agent:x", "microdao_id": "plain"}) == []
    await reindex(memory)
    assert len(await hits(memory, "документ", {"agent_id": "agent:x", "microdao_id": "plain"})) == 1
    assert len(await hits(memory, "документ", {"agent_id": "agent:x", "microdao_id": ".."})) == 1


async def test_a_document_that_cannot_be_saved_does_not_stop_the_others(
    memory: Memory, shared: Path, database: Database, monkeypatch: pytest.MonkeyPatch
):
    """Somebody holds the lock of the shared tree: each of its statements ends at its timeout."""
    for name in ("a.md", "b.md"):
        (shared / name).write_text("Каса", encoding="utf-8")
    await reindex(memory)
    (shared / "a.md").write_text("Комора", encoding="utf-8")
    (shared / "b.md").unlink()
    own = memory.data_dir / "kb" / "microdao" / "microdao%3A7"
    own.mkdir(parents=True)
    (own / "c.md").write_text("Бібліотека", encoding="utf-8")
    async with background_transaction(database, Area("", "")) as connection:
        await lock(connection, Area("", ""))
        monkeypatch.setattr(documents, "TIMEOUT_S", 1.0)
        await memory.runtime.cases.knowledge.run()
        report = await reindex(memory)
        assert [entry["path"] for entry in report["refused"]] == ["a.md", "b.md"]
        assert (report["unchanged"], "deleted" in report) == (1, False)
    assert {hit["content"] for hit in await hits(memory, "каса комора бібліотека")} == {
        "Каса",
        "Бібліотека",
    }
    monkeypatch.undo()
    await memory.runtime.cases.knowledge.run()
    assert {hit["content"] for hit in await hits(memory, "каса комора бібліотека")} == {
        "Комора",
        "Бібліотека",
    }


async def test_a_tree_that_cannot_be_read_does_not_stop_the_others(
    memory: Memory, shared: Path, monkeypatch: pytest.MonkeyPatch, events: RecordedEvents
):
    (shared / "a.md").write_text("Каса", encoding="utf-8")
    own = memory.data_dir / "kb" / "microdao" / "microdao%3A7"
    own.mkdir(parents=True)
    (own / "c.md").write_text("Бібліотека", encoding="utf-8")
    known = documents.DocumentTables.known

    async def slow(self: documents.DocumentTables, microdao_id: str) -> Any:
        if not microdao_id:
            raise DeadlineExceeded("a statement took too long")
        return await known(self, microdao_id)

    monkeypatch.setattr(documents.DocumentTables, "known", slow)
    report = await reindex(memory)
    assert [entry["path"] for entry in report["refused"]] == ["."]
    assert report["added"] == 1
    assert events.named("memory.kb_failed") == [{"microdao_id": "", "error": "deadline_exceeded"}]


@pytest.fixture
def cut_paths(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of files that were parsed, never on the event loop's thread."""
    paths: list[str] = []
    loop_thread = threading.get_ident()

    def recorded(parts: Any, path: str, *arguments: Any, **options: Any) -> list[DocumentChunk]:
        assert threading.get_ident() != loop_thread
        paths.append(path)
        return chunking.cut(parts, path, *arguments, **options)

    monkeypatch.setattr(indexing, "cut", recorded)
    return paths


async def test_an_unchanged_file_is_not_parsed(
    memory: Memory, shared: Path, cut_paths: list[str], monkeypatch: pytest.MonkeyPatch
):
    for name in ("a.md", "b.md"):
        (shared / name).write_text(f"# {name}\nтекст", encoding="utf-8")
    await reindex(memory)
    assert cut_paths == ["a.md", "b.md"]
    os.utime(shared / "a.md", (1, 1))
    (shared / "b.md").write_text("# b.md\nінший текст", encoding="utf-8")
    assert await reindex(memory) == {"files": 2, "unchanged": 1, "changed": 1, "chunks": 1}
    assert cut_paths == ["a.md", "b.md", "b.md"]
    (shared / "b.md").rename(shared / "moved.md")
    assert await reindex(memory) == {"files": 2, "unchanged": 1, "moved": 1}
    assert len(cut_paths) == 3
    monkeypatch.setattr(chunking, "VERSION", chunking.VERSION + 1)
    assert await reindex(memory) == {"files": 2, "unchanged": 2}
    assert await reindex(memory) == {"files": 2, "unchanged": 2}
    assert cut_paths[3:] == ["a.md", "moved.md"]


async def test_a_renamed_file_is_cut_by_the_rules_of_its_new_name(memory: Memory, shared: Path):
    """Also by a periodic run, which reads a file once for each of its paths and times."""
    (shared / "a.md").write_text("# Каса\nДо шостої.", encoding="utf-8")
    await reindex(memory)
    assert (await hits(memory, "каса"))[0]["meta"]["heading"] == "Каса"
    (shared / "a.md").rename(shared / "a.txt")
    await memory.runtime.cases.knowledge.run()
    (hit,) = await hits(memory, "каса")
    assert (hit["content"], hit["meta"]["heading"]) == ("# Каса\nДо шостої.", "")
    assert await reindex(memory) == {"files": 1, "unchanged": 1}
    (shared / "a.txt").rename(shared / "b.md")
    assert await reindex(memory) == {"files": 1, "moved": 1, "changed": 1, "chunks": 1}


async def test_a_file_of_an_older_release_is_parsed_once(
    memory: Memory, shared: Path, cut_paths: list[str], database: Database
):
    """Its row has the file's SHA-256 alone."""
    for name in ("a.md", "b.md"):
        (shared / name).write_text(f"# {name}\nтекст", encoding="utf-8")
    await reindex(memory)
    async with background_transaction(database, Area("", "")) as connection:
        await connection.execute("UPDATE kb_documents SET hash = substring(hash FOR 32)")
    (shared / "b.md").rename(shared / "c.md")
    assert await reindex(memory) == {"files": 2, "unchanged": 1, "moved": 1}
    assert await reindex(memory) == {"files": 2, "unchanged": 2}
    assert cut_paths[2:] == ["a.md", "c.md"]


async def test_new_rules_of_cutting_reach_an_unchanged_file_by_a_run_on_call(
    memory: Memory, shared: Path, embedder: HashingEmbedder, monkeypatch: pytest.MonkeyPatch
):
    """As after an upgrade: the older version did not know underlined headings."""
    text = "Збори\n=====\nУ четвер.\n\n# Каса\nДо шостої.\n"
    (shared / "plan.md").write_text(text, encoding="utf-8")
    with monkeypatch.context() as older:
        older.setattr(sections, "_MARKDOWN", MarkdownIt("commonmark").disable("lheading"))
        older.setattr(chunking, "VERSION", chunking.VERSION - 1)
        await reindex(memory)
    knowledge = memory.runtime.cases.knowledge
    await embedded(embedder, 2 + 1)
    await knowledge.run()
    assert (await hits(memory, "збори четвер"))[0]["meta"]["heading"] == ""
    assert await reindex(memory) == {"files": 1, "changed": 1, "chunks": 1}
    assert (await hits(memory, "збори четвер"))[0]["content"] == "Збори\nУ четвер."
    await embedded(embedder, 3 + 2)  # the section with a heading now, and two markers
    assert await reindex(memory) == {"files": 1, "unchanged": 1}
