"""`/documents`: uploads into a microDAO's knowledge base, their list and their removal."""

import asyncio
import errno
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from backends.memory import documents as document_tables
from configs.memory import MemorySettings
from executors.python.tiers import HostTiers
from launcher.postgres import DatabaseUrls
from services.memory import chunking, documents
from tests.support.events import RecordedEvents
from tests.support.memory.application import (
    SOFIA,
    STRANGER,
    Memory,
    eventually,
    memory_application,
    succeeded,
)
from tests.support.memory.documents import docx, pdf
from tests.support.memory.hashing_embedder import HashingEmbedder

OWN = {"microdao_id": "microdao:7"}


async def put(memory: Memory, path: str, data: bytes | str, **query: str) -> httpx.Response:
    content = data.encode() if isinstance(data, str) else data
    return await memory.client.put(
        "/documents",
        params={**OWN, "path": path, **query},
        content=content,
        headers={"Content-Type": "application/octet-stream"},
    )


async def listed(memory: Memory, **query: Any) -> Any:
    return succeeded(await memory.client.get("/documents", params={**OWN, **query}))


async def remove(memory: Memory, path: str) -> httpx.Response:
    return await memory.client.delete("/documents", params={**OWN, "path": path})


async def found(memory: Memory, question: str, tenant: Mapping[str, str] = SOFIA) -> list[str]:
    return [hit["content"] for hit in await hits(memory, question, tenant)]


async def hits(memory: Memory, question: str, tenant: Mapping[str, str] = SOFIA) -> Any:
    return (await memory.query(question, dict(tenant), kinds=["kb"]))["items"]


async def test_an_upload_is_found_listed_replaced_and_deleted(
    memory: Memory, embedder: HashingEmbedder, events: RecordedEvents
):
    first = succeeded(await put(memory, "handbook/правила.pdf", pdf("Внески", "Кворум")))
    assert first["outcome"] == "added"
    assert (first["path"], first["chunks"], first["pages"]) == ("handbook/правила.pdf", 2, 2)
    assert len(first["version"]) == 64
    hit, *_ = await hits(memory, "кворум")
    assert (hit["content"], hit["meta"]["page"], hit["meta"]["tree"]) == ("Кворум", 2, "microdao")
    assert await found(memory, "кворум", STRANGER) == []
    folder = memory.data_dir / "kb" / "microdao" / "microdao%3A7"
    paths = (folder, folder / "handbook", folder / "handbook" / "правила.pdf")
    assert [path.stat().st_mode & 0o777 for path in paths] == [0o700, 0o700, 0o600]

    async def embedded() -> bool:
        return [each["waiting"] for each in (await listed(memory))["items"]] == [0]

    await eventually(embedded)
    again = succeeded(await put(memory, "handbook/правила.pdf", pdf("Внески", "Кворум")))
    assert (again["outcome"], again["version"]) == ("unchanged", first["version"])
    changed = succeeded(await put(memory, "handbook/правила.pdf", pdf("Внески", "Дві третини")))
    assert (changed["outcome"], changed["chunks"]) == ("changed", 2)
    assert changed["version"] != first["version"]
    await eventually(embedded)
    assert embedder.passages == 3  # the page that stayed kept its vector
    assert sorted(await found(memory, "кворум третини")) == ["Внески", "Дві третини"]
    (entry,) = (await listed(memory))["items"]
    assert entry == {key: changed[key] for key in entry} | {"waiting": 0}
    assert (await listed(memory, microdao_id="microdao:8"))["items"] == []

    assert succeeded(await remove(memory, "handbook/правила.pdf"))["ok"] is True
    assert await found(memory, "внески третини") == []
    assert events.named("memory.document_removed") == [
        {"microdao_id": "microdao:7", "version": changed["version"]}
    ]
    assert (await listed(memory))["items"] == []
    assert list((memory.data_dir / "kb" / "microdao" / "microdao%3A7").iterdir()) == []
    assert (await remove(memory, "handbook/правила.pdf")).status_code == 404


async def test_every_kind_is_taken_and_a_run_over_the_folders_finds_nothing_to_do(memory: Memory):
    files = {
        "a.txt": b"\xef\xbb\xbf" + "Перший".encode(),
        "b.md": "# Другий\nтекст".encode(),
        "c.html": "<h1>Третій</h1><p>текст".encode(),
        "d.docx": docx("# Четвертий", "текст"),
        "e.pdf": pdf("Пʼятий"),
        "f.md": b"",
    }
    for path, data in files.items():
        assert succeeded(await put(memory, path, data))["outcome"] == "added", path
    chunks = {each["path"]: each["chunks"] for each in (await listed(memory))["items"]}
    assert chunks == dict.fromkeys(files, 1) | {"f.md": 0}
    await memory.runtime.cases.knowledge.run()
    report = succeeded(await memory.post("/kb/reindex", {}))
    assert (report["unchanged"], report["files"], report["added"]) == (6, 6, 0)
    folder = memory.data_dir / "kb" / "microdao" / "microdao%3A7"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


async def test_a_list_has_pages_in_order_of_paths(memory: Memory):
    paths = [f"{name}/{number}.md" for name in ("а", "b") for number in range(3)]
    for path in paths:
        succeeded(await put(memory, path, path))
    seen, cursor = [], {}
    while cursor is not None:
        page = await listed(memory, limit=2, **cursor)
        assert len(page["items"]) <= 2
        seen += [each["path"] for each in page["items"]]
        cursor = {"cursor": page["next_cursor"]} if "next_cursor" in page else None
    assert sorted(seen) == sorted(paths)
    assert [each["path"] for each in (await listed(memory, path="b/1.md"))["items"]] == ["b/1.md"]
    assert (await listed(memory, path="b/9.md"))["items"] == []


async def test_chunks_and_queue_are_read_once_for_a_page(
    memory: Memory, database_urls: DatabaseUrls
):
    for number in range(5):
        succeeded(await put(memory, f"{number}.md", f"каса {number}"))
    values = {**OWN, "after": "", "path": None, "limit": 100}
    async with await psycopg.AsyncConnection.connect(database_urls.superuser) as connection:
        explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {document_tables.PAGE}"
        row = await (await connection.execute(explain, values)).fetchone()
    scans = list(_scans(row[0][0]["Plan"]))
    assert sum(scan["Actual Rows"] for scan in scans) >= 5
    assert all(scan["Actual Loops"] <= 1 for scan in scans), scans


def _scans(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if node.get("Relation Name", "").startswith(("agent_memories", "memory_queue")):
        yield node
    for below in node.get("Plans", []):
        yield from _scans(below)


@pytest.mark.parametrize(
    "kind", ["multipart/form-data; boundary=x", "application/x-www-form-urlencoded"]
)
async def test_a_form_is_no_document(memory: Memory, kind: str):
    answer = await memory.client.put(
        "/documents",
        params={**OWN, "path": "a.md"},
        content=b"--x\r\n\r\nx\r\n--x--",
        headers={"Content-Type": kind},
    )
    assert answer.status_code == 415
    assert "--upload-file" in answer.json()["error"]["message"]
    assert (await listed(memory))["items"] == []


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/x.md",
        "../x.md",
        "a/../x.md",
        "a//x.md",
        "a/.hidden/x.md",
        ".md",
        "a/",
        "a\0.md",
        "a\n.md",
        "ї" * 128 + ".md",
        "a/" * 255 + "x.md",
        "program.exe",
        "no-suffix",
    ],
    ids=ascii,
)
async def test_a_path_outside_the_rules_is_refused(memory: Memory, path: str):
    query = httpx.QueryParams({**OWN, "path": path})
    for method in ("PUT", "DELETE"):
        answer = await memory.client.request(method, f"/documents?{query}", content=b"x")
        assert answer.status_code == 400, answer.text
    assert not (memory.data_dir / "kb").exists()


async def test_what_cannot_be_read_is_refused_and_leaves_what_was_there(memory: Memory):
    succeeded(await put(memory, "a.pdf", pdf("Статут")))
    for data, reason in ((pdf(""), "no text"), (b"not a PDF", "cannot be read as pdf")):
        refused = await put(memory, "a.pdf", data)
        assert refused.status_code == 400
        assert reason in refused.json()["error"]["message"]
    assert await found(memory, "статут") == ["Статут"]
    refused = await put(memory, "b.md", "їжак".encode("cp1251"))
    assert (refused.status_code, "UTF-8" in refused.text) == (400, True)
    large = await put(memory, "b.md", b"x" * ((2 << 20) + 1))
    assert large.status_code == 413
    assert (await put(memory, "b.pdf", b"x" * ((16 << 20) + 1))).status_code == 413
    assert [each["path"] for each in (await listed(memory))["items"]] == ["a.pdf"]
    assert (await put(memory, "c.md", "x", microdao_id="ї" * 100)).status_code == 409


async def test_links_and_folders_in_the_way_are_not_followed(memory: Memory, tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.md").write_text("таємниця", encoding="utf-8")
    own = memory.data_dir / "kb" / "microdao" / "microdao%3A7"
    own.mkdir(parents=True)
    (own / "link").symlink_to(outside)
    (own / "link.md").symlink_to(outside / "secret.md")
    (own / "folder.md").mkdir()
    (own / "file.md").write_text("файл", encoding="utf-8")
    for path in ("link/new.md", "link/new/x.md", "folder.md", "file.md/x.md"):
        refused = await put(memory, path, "текст")
        assert (refused.status_code, refused.json()["error"]["type"]) == (409, "conflict"), path
    for path in ("link/secret.md", "folder.md"):
        assert (await remove(memory, path)).status_code == 404
    succeeded(await put(memory, "link.md", "замість посилання"))
    assert [path.name for path in outside.iterdir()] == ["secret.md"]
    assert (outside / "secret.md").read_text(encoding="utf-8") == "таємниця"
    assert await found(memory, "замість таємниця") == ["замість посилання"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
async def test_a_disk_that_refuses_is_said_and_nothing_changes(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, code: int
):
    succeeded(await put(memory, "a.md", "Статут"))

    def refusing(*_arguments: Any, **_options: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", refusing)
        assert (await put(memory, "b/c.md", "Правила")).status_code == 503
        assert list(memory.data_dir.glob("kb/microdao/*/b/.*")) == []
        disk.setattr(os, "unlink", refusing)
        for refused in (await put(memory, "a.md", "Правила"), await remove(memory, "a.md")):
            assert (refused.status_code, refused.json()["error"]["retryable"]) == (503, True)
            assert str(memory.data_dir) not in refused.text
    assert await found(memory, "статут") == ["Статут"]
    assert succeeded(await put(memory, "a.md", "Правила"))["outcome"] == "changed"


async def test_a_document_that_cannot_be_cut_is_not_stored(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
):
    succeeded(await put(memory, "a.md", "Статут"))
    monkeypatch.setattr(chunking, "MAX_CHUNKS", 2)
    refused = await put(memory, "a.md", "# a\nx\n# b\ny\n# c\nz")
    assert (refused.status_code, "too many sections" in refused.text) == (400, True)
    folder = memory.data_dir / "kb" / "microdao" / "microdao%3A7"
    assert (folder / "a.md").read_text(encoding="utf-8") == "Статут"
    assert await found(memory, "статут") == ["Статут"]


async def test_a_document_is_stored_in_slices(memory: Memory, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(document_tables, "ADD_AT_ONCE", 2)
    text = "".join(f"# {word}\nтекст\n" for word in ("перший", "другий", "третій"))
    assert succeeded(await put(memory, "a.md", text))["chunks"] == 3
    headings = [hit["meta"]["heading"] for hit in await hits(memory, "третій")]
    assert headings[0] == "третій"
    assert (await hits(memory, "перший"))[0]["meta"]["heading"] == "перший"


async def test_a_document_in_several_folders_of_one_microdao_is_deleted_in_all(memory: Memory):
    """Operators may have named a folder by the plain id."""
    plain = memory.data_dir / "kb" / "microdao" / "microdao:7"
    plain.mkdir(parents=True)
    (plain / "a.md").write_text("Старе", encoding="utf-8")
    succeeded(await memory.post("/kb/reindex", {}))
    assert succeeded(await put(memory, "a.md", "Нове"))["outcome"] == "changed"
    await memory.runtime.cases.knowledge.run()
    assert await found(memory, "старе нове") == ["Нове"]
    succeeded(await remove(memory, "a.md"))
    succeeded(await memory.post("/kb/reindex", {}))
    assert await found(memory, "старе нове") == []


async def test_an_upload_over_the_quota_is_refused_before_it_is_stored(
    database_url: str, tmp_path: Path, embedder: HashingEmbedder, events: RecordedEvents
):
    quotas = {"microdaos": {"microdao:7": {"documents": 2}}}
    async with memory_application(
        database_url, tmp_path, embedder, events, quotas=quotas
    ) as memory:
        for path in ("a.md", "b.md"):
            succeeded(await put(memory, path, path))
        refused = await put(memory, "c.md", "c")
        assert (refused.status_code, refused.json()["error"]["details"]) == (
            429,
            {"limit": "microdao.documents", "subject": "microdao:7", "amount": 2},
        )
        assert succeeded(await put(memory, "a.md", "нове"))["outcome"] == "changed"
        succeeded(await put(memory, "c.md", "c", microdao_id="microdao:8"))
        succeeded(await remove(memory, "b.md"))
        succeeded(await put(memory, "c.md", "c"))
        names = {path.name for path in tmp_path.glob("kb/microdao/microdao%3A7/*")}
        assert names == {"a.md", "c.md"}


async def test_few_uploads_run_others_wait_and_not_for_ever(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(documents, "WAIT_S", 0.2)
    slots = memory.runtime.cases.documents.slots
    for _ in range(documents.AT_ONCE):
        await slots.acquire()
    refused = await put(memory, "a.md", "текст")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    monkeypatch.setattr(documents, "WAIT_S", 60)
    waiting = asyncio.ensure_future(put(memory, "a.md", "текст"))
    slots.release()
    assert succeeded(await waiting)["outcome"] == "added"
    assert (await put(memory, "a.md", b"\xff")).status_code == 400
    assert succeeded(await put(memory, "a.md", "інше"))["outcome"] == "changed"


async def test_while_the_sandbox_is_away_uploads_are_refused_for_now(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
):
    succeeded(await put(memory, "a.pdf", pdf("Статут")))
    monkeypatch.setattr(memory.runtime._converter._executor, "_tiers", HostTiers(()))
    refused = await put(memory, "a.pdf", pdf("Правила"))
    assert (refused.status_code, refused.json()["error"]["retryable"]) == (503, True)
    assert succeeded(await put(memory, "b.md", "Правила"))["outcome"] == "added"
    assert sorted(await found(memory, "статут правила")) == ["Правила", "Статут"]


async def test_uploads_are_erased_with_their_microdao(memory: Memory):
    succeeded(await put(memory, "a/b.md", "Статут"))
    erased = succeeded(await memory.post("/erase", OWN))["erased"]
    assert (erased["kb_files"], erased["kb_documents"], erased["kb_chunks"]) == (1, 1, 1)
    assert await found(memory, "статут") == []
    assert not (memory.data_dir / "kb" / "microdao" / "microdao%3A7").exists()


async def test_the_draft_of_an_upload_that_failed_is_removed_by_a_run(memory: Memory):
    succeeded(await put(memory, "a.md", "Статут"))
    folder = memory.data_dir / "kb" / "microdao" / "microdao%3A7"
    for name, age in ((".upload-old", 7_200), (".upload-new", 60), (".kept", 7_200)):
        (folder / name).touch()
        os.utime(folder / name, (time.time() - age,) * 2)
    await memory.runtime.cases.knowledge.run()
    assert {path.name for path in folder.iterdir()} == {"a.md", ".upload-new", ".kept"}


async def test_bounds_are_settings(
    database_url: str, tmp_path: Path, embedder: HashingEmbedder, events: RecordedEvents
):
    kb = {"interval_s": 0, "max_file_bytes": 1_024, "max_document_bytes": 4_096}
    settings = MemorySettings.model_validate({"knowledge_base": kb})
    async with memory_application(
        database_url, tmp_path, embedder, events, settings=settings
    ) as memory:
        assert (await put(memory, "a.md", b"x" * 1_025)).status_code == 413
        refused = await put(memory, "a.html", b"x " * 1_000)
        assert (refused.status_code, "1024 characters" in refused.text) == (400, True)
        assert (await put(memory, "a.html", b"<p>" * 1_366)).status_code == 413
        succeeded(await put(memory, "a.html", b"<!--" + b"x" * 3_000 + b"--><p>x"))
