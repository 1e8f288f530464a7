"""PDF, DOCX and HTML files in the folders of the knowledge base."""

import os
from pathlib import Path
from typing import Any

import pytest

from executors.conversion.converter import SandboxedConverter
from executors.python.tiers import HostTiers
from tests.support.events import RecordedEvents
from tests.support.memory.application import Memory, succeeded
from tests.support.memory.documents import docx, pdf


@pytest.fixture
def shared(memory: Memory) -> Path:
    folder = memory.data_dir / "kb" / "shared"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of files that were converted."""
    paths: list[str] = []
    convert = SandboxedConverter.convert

    async def recorded(self: SandboxedConverter, path: str, data: bytes) -> Any:
        paths.append(path)
        return await convert(self, path, data)

    monkeypatch.setattr(SandboxedConverter, "convert", recorded)
    return paths


async def reindex(memory: Memory) -> dict[str, Any]:
    report = succeeded(await memory.post("/kb/reindex", {}))
    return {key: value for key, value in report.items() if value and key != "ok"}


async def hit(memory: Memory, question: str) -> Any:
    found = (await memory.query(question, kinds=["kb"]))["items"][0]
    meta = {key: found["meta"].get(key) for key in ("path", "heading", "page", "line")}
    return found["content"], {key: value for key, value in meta.items() if value is not None}


async def test_a_hit_names_page_and_heading(
    memory: Memory, shared: Path, events: RecordedEvents
) -> None:
    pages = ("Статут кооперативу", "Внески членів\nщомісяця")
    (shared / "statute.pdf").write_bytes(pdf(*pages))
    (shared / "rules.docx").write_bytes(docx("# Збори", "## Кворум", "Дві третини голосів"))
    (shared / "page.html").write_text("<h1>Толока</h1><p>Прибирання парку", encoding="utf-8")
    assert await reindex(memory) == {"files": 3, "added": 3, "chunks": 4}
    assert await hit(memory, "внески щомісяця") == (
        "Внески членів\nщомісяця",
        {"path": "statute.pdf", "heading": "", "page": 2},
    )
    assert await hit(memory, "статут кооперативу") == (
        "Статут кооперативу",
        {"path": "statute.pdf", "heading": "", "page": 1},
    )
    assert await hit(memory, "дві третини голосів") == (
        "Збори > Кворум\nДві третини голосів",
        {"path": "rules.docx", "heading": "Збори > Кворум"},
    )
    assert await hit(memory, "прибирання парку") == (
        "Толока\nПрибирання парку",
        {"path": "page.html", "heading": "Толока"},
    )
    announced = events.named("memory.document_indexed")
    assert [(each["kind"], each["chunks"], each["pages"]) for each in announced] == [
        ("html", 1, None),
        ("docx", 1, None),
        ("pdf", 2, 2),
    ]
    assert "statute" not in repr(events.events)


async def test_a_changed_page_is_embedded_alone_and_an_unchanged_file_not_converted(
    memory: Memory, shared: Path, converted: list[str]
) -> None:
    file = shared / "statute.pdf"
    file.write_bytes(pdf("Перша сторінка", "Друга сторінка"))
    await reindex(memory)
    os.utime(file, (1, 1))
    assert await reindex(memory) == {"files": 1, "unchanged": 1}
    assert converted == ["statute.pdf"]
    file.write_bytes(pdf("Перша сторінка", "Вступ", "Друга сторінка"))
    assert await reindex(memory) == {"files": 1, "changed": 1, "chunks": 1}
    assert (await hit(memory, "друга сторінка"))[1]["page"] == 3


async def test_a_refused_file_leaves_the_index_and_is_converted_once_until_it_changes(
    memory: Memory, shared: Path, converted: list[str]
) -> None:
    file = shared / "statute.pdf"
    file.write_bytes(pdf("Статут"))
    await reindex(memory)
    file.write_bytes(pdf(""))
    report = await reindex(memory)
    assert report["deleted"] == 1
    assert [entry["path"] for entry in report["refused"]] == ["statute.pdf"]
    assert "no text" in report["refused"][0]["reason"]
    assert (await memory.query("статут", kinds=["kb"]))["items"] == []
    converted.clear()
    for _ in range(3):
        await memory.runtime.cases.knowledge.run()
    assert converted == []
    file.write_bytes(pdf("Статут і правила"))
    await memory.runtime.cases.knowledge.run()
    assert converted == ["statute.pdf"]
    assert (await hit(memory, "статут"))[0] == "Статут і правила"


async def test_another_version_of_a_library_reaches_its_files_by_a_run_on_call(
    memory: Memory, shared: Path, converted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (shared / "a.docx").write_bytes(docx("Каса"))
    (shared / "b.md").write_text("Каса", encoding="utf-8")
    await reindex(memory)
    monkeypatch.setattr(memory.runtime._converter, "version", "newer")
    converted.clear()
    await memory.runtime.cases.knowledge.run()
    assert converted == []
    assert await reindex(memory) == {"files": 2, "unchanged": 2}
    assert converted == ["a.docx"]


async def test_while_the_sandbox_is_away_indexed_files_stay(
    memory: Memory, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shared / "a.pdf").write_bytes(pdf("Статут"))
    await reindex(memory)
    (shared / "a.pdf").write_bytes(pdf("Статут і правила"))
    with monkeypatch.context() as away:
        away.setattr(memory.runtime._converter._executor, "_tiers", HostTiers(()))
        report = await reindex(memory)
    assert "isolation tier" in report["refused"][0]["reason"]
    assert "deleted" not in report
    assert (await hit(memory, "статут"))[0] == "Статут"
    await memory.runtime.cases.knowledge.run()
    assert (await hit(memory, "статут"))[0] == "Статут і правила"
