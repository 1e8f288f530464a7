"""Uploads, deletions and runs over the folders write the rows of one document at a time.

Whatever their order, the index ends as the files are. Each test stops one of them in the middle.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from backends.memory.documents import DocumentTables
from executors.conversion.converter import SandboxedConverter
from services.memory.indexing import Indexing
from tests.support.events import RecordedEvents
from tests.support.memory.application import SOFIA, Memory, memory_application, succeeded
from tests.support.memory.hashing_embedder import HashingEmbedder

OWN = {"microdao_id": "microdao:7"}


class Gate:
    """Stops the next call that asks it, until it is opened."""

    def __init__(self) -> None:
        self._armed = False
        self._reached, self._opened = asyncio.Event(), asyncio.Event()

    async def passed(self) -> None:
        if self._armed:
            self._armed = False
            self._reached.set()
            await self._opened.wait()

    @asynccontextmanager
    async def holding(self, call: Any) -> AsyncIterator[asyncio.Task[Any]]:
        """Starts `call`, and goes on once it is stopped; afterwards lets it end."""
        self._armed = True
        task = asyncio.ensure_future(call)
        reached = asyncio.ensure_future(self._reached.wait())
        await asyncio.wait({task, reached}, return_when=asyncio.FIRST_COMPLETED)
        assert reached.done(), "the call was not stopped"
        yield task
        self._opened.set()
        await task


@pytest.fixture
def after_conversion(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """A gate behind the conversion: the file was read, its rows are not written."""
    gate, convert = Gate(), SandboxedConverter.convert

    async def gated(self: SandboxedConverter, path: str, data: bytes) -> Any:
        parts = await convert(self, path, data)
        await gate.passed()
        return parts

    monkeypatch.setattr(SandboxedConverter, "convert", gated)
    return gate


@pytest.fixture
def before_writing(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """A gate of uploads: the document was looked up, its file is not written."""
    gate, file = Gate(), Indexing.file

    async def gated(self: Indexing, *arguments: Any) -> None:
        await gate.passed()
        await file(self, *arguments)

    monkeypatch.setattr(Indexing, "file", gated)
    return gate


@pytest.fixture
def before_removal(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """A gate before rows of a document are removed."""
    gate, remove_rows = Gate(), DocumentTables.remove

    async def gated(self: DocumentTables, *arguments: Any) -> int:
        await gate.passed()
        return await remove_rows(self, *arguments)

    monkeypatch.setattr(DocumentTables, "remove", gated)
    return gate


@pytest.fixture
async def other(
    memory: Memory, database_url: str, tmp_path: Path, events: RecordedEvents
) -> AsyncIterator[Memory]:
    """Another replica on the same database and folders."""
    async with memory_application(database_url, tmp_path, HashingEmbedder(), events) as found:
        yield found


async def put(memory: Memory, path: str, text: str) -> Any:
    params = {**OWN, "path": path}
    return succeeded(await memory.client.put("/documents", params=params, content=text.encode()))


async def remove(memory: Memory, path: str) -> Any:
    return succeeded(await memory.client.delete("/documents", params={**OWN, "path": path}))


async def reindex(memory: Memory) -> Any:
    return succeeded(await memory.post("/kb/reindex", OWN))


async def indexed(memory: Memory) -> dict[str, list[str]]:
    """Returns the contents by path, as listed and as found by a query for all."""
    page = succeeded(await memory.client.get("/documents", params=OWN))
    contents: dict[str, list[str]] = {each["path"]: [] for each in page["items"]}
    for hit in (await memory.query("документ", SOFIA, kinds=["kb"], limit=50))["items"]:
        contents[hit["meta"]["path"]].append(hit["content"])
    return contents


def files(memory: Memory) -> dict[str, list[str]]:
    """Returns what `indexed` should: one chunk for each file."""
    folder = memory.data_dir / "kb" / "microdao" / "microdao%3A7"
    return {path.name: [path.read_text(encoding="utf-8")] for path in folder.iterdir()}


async def test_an_upload_during_a_run_that_read_the_old_file_wins(memory, other, after_conversion):
    await put(memory, "a.md", "документ перший")
    (memory.data_dir / "kb/microdao/microdao%3A7/a.md").write_text("документ другий", "utf-8")
    async with after_conversion.holding(reindex(other)):
        await put(memory, "a.md", "документ третій")
    assert await indexed(memory) == {"a.md": ["документ третій"]} == files(memory)


async def test_an_upload_of_a_file_that_a_run_missed_stays(memory, other, after_conversion):
    await put(memory, "a.md", "документ перший")
    await put(memory, "b.md", "документ другий")
    folder = memory.data_dir / "kb/microdao/microdao%3A7"
    (folder / "a.md").unlink()
    (folder / "b.md").write_text("документ змінений", "utf-8")
    async with after_conversion.holding(reindex(other)):  # it knows that a.md is gone
        await put(memory, "a.md", "документ третій")
    expected = {"a.md": ["документ третій"], "b.md": ["документ змінений"]}
    assert await indexed(memory) == expected == files(memory)


async def test_an_upload_into_a_folder_that_a_run_did_not_find_stays(
    memory, other, after_conversion
):
    await put(memory, "a.md", "документ перший")
    folder = memory.data_dir / "kb/microdao/microdao%3A7"
    shutil.rmtree(folder)
    (folder.parent / "microdao%3A1").mkdir()  # its turn is before
    (folder.parent / "microdao%3A1" / "x.md").write_text("чуже", "utf-8")
    async with after_conversion.holding(other.post("/kb/reindex", {})):
        await put(memory, "a.md", "документ другий")
    assert await indexed(memory) == {"a.md": ["документ другий"]} == files(memory)


async def test_a_document_that_is_deleted_during_a_run_does_not_come_back(
    memory, other, after_conversion
):
    await put(memory, "a.md", "документ перший")
    (memory.data_dir / "kb/microdao/microdao%3A7/a.md").write_text("документ другий", "utf-8")
    (memory.data_dir / "kb/microdao/microdao%3A7/b.md").write_text("документ новий", "utf-8")
    async with after_conversion.holding(reindex(other)):
        for path in ("a.md", "b.md"):
            await remove(memory, path)
    assert await indexed(memory) == {}


async def test_an_unchanged_upload_of_a_document_that_is_deleted_meanwhile_is_indexed(
    memory, other, before_writing
):
    await put(memory, "a.md", "документ перший")
    folder = memory.data_dir / "kb/microdao/microdao%3A7"
    async with before_writing.holding(put(memory, "a.md", "документ перший")) as upload:
        (folder / "a.md").rename(folder / ".a.md")  # as if it came after the deletion of the file
        await remove(other, "a.md")
        (folder / ".a.md").rename(folder / "a.md")
    assert upload.result()["outcome"] == "added"
    assert await indexed(memory) == {"a.md": ["документ перший"]} == files(memory)


async def test_an_upload_that_is_deleted_before_it_is_indexed_says_so(
    memory, other, before_writing
):
    params = {**OWN, "path": "a.md"}
    upload = memory.client.put("/documents", params=params, content=b"text")
    async with before_writing.holding(upload) as answer:
        await remove(other, "a.md")
    assert answer.result().status_code == 409
    assert await indexed(memory) == {}


async def test_an_upload_during_its_deletion_is_indexed(memory, other, before_removal):
    await put(memory, "a.md", "документ перший")
    async with before_removal.holding(remove(other, "a.md")):  # the file is gone, its rows are not
        await put(memory, "a.md", "документ другий")
    assert await indexed(memory) == {"a.md": ["документ другий"]} == files(memory)


async def test_a_file_that_is_uploaded_and_moved_by_a_run_at_a_time_is_one_document(
    memory, other, after_conversion
):
    await put(memory, "a.md", "документ перший")
    await put(memory, "z.md", "документ останній")
    folder = memory.data_dir / "kb/microdao/microdao%3A7"
    (folder / "a.md").rename(folder / "b.md")
    (folder / "a.txt").write_text("документ змінений", "utf-8")
    async with after_conversion.holding(reindex(other)):  # a.txt comes before b.md
        await put(memory, "b.md", "документ перший")
    assert await indexed(memory) == files(memory)
    assert (await reindex(other))["unchanged"] == 3


async def test_an_erasure_does_not_wait_for_a_run_and_wins(memory, after_conversion):
    await put(memory, "a.md", "документ перший")
    (memory.data_dir / "kb/microdao/microdao%3A7/a.md").write_text("документ другий", "utf-8")
    async with after_conversion.holding(reindex(memory)), asyncio.timeout(50):
        assert succeeded(await memory.post("/erase", OWN))["erased"]["kb_documents"] == 1
    assert await indexed(memory) == {}


async def test_of_many_uploads_one_file_stays_and_is_indexed(memory, other):
    texts = [f"документ номер {number}" for number in range(12)]
    uploads = [put((memory, other)[number % 2], "a.md", text) for number, text in enumerate(texts)]
    uploads += [
        put((memory, other)[number % 2], f"b{number}.md", f"документ b{number}")
        for number in range(4)
    ]
    await asyncio.gather(*uploads, memory.runtime.cases.knowledge.run())
    assert await indexed(memory) == files(memory)
