"""Uploads are admitted before their bodies are read, so that other requests have their places."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.access.principals import Grants
from executors.conversion.converter import SandboxedConverter
from services.memory import documents
from tests.support.access import access_control
from tests.support.events import RecordedEvents
from tests.support.memory.application import Memory, eventually, memory_application, succeeded
from tests.support.memory.hashing_embedder import HashingEmbedder

KEYS = {kind: f"dk_{kind}".ljust(46, "x") for kind in ("agent", "person")}


class Body:
    """A body whose second part arrives when it is let."""

    def __init__(self) -> None:
        self.asked, self.let = asyncio.Event(), asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield "Статут ".encode()
        self.asked.set()
        await self.let.wait()
        yield "кооперативу".encode()


async def put(
    memory: Memory, path: str, body: Any = b"text", microdao: str = "microdao:7"
) -> httpx.Response:
    params = {"microdao_id": microdao, "path": path}
    return await memory.client.put("/documents", params=params, content=body)


async def test_uploads_over_the_bound_are_refused_before_they_are_read(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(documents, "MOST", 3)
    monkeypatch.setattr(documents, "MOST_EACH", 2)
    slow = [Body(), Body()]
    uploads = [asyncio.ensure_future(put(memory, f"{n}.md", slow[n])) for n in range(2)]
    for body in slow:
        await body.asked.wait()
    unread = Body()
    refused = await put(memory, "c.md", unread)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert not unread.asked.is_set()
    succeeded(await put(memory, "c.md", microdao="microdao:8"))  # its place is its own
    assert (await memory.query("статут", kinds=["kb"]))["items"] == []
    last = Body()
    uploads.append(asyncio.ensure_future(put(memory, "d.md", last, "microdao:9")))
    await last.asked.wait()
    assert (await put(memory, "c.md", microdao="microdao:8")).status_code == 503
    for body in (*slow, last):
        body.let.set()
    for answer in await asyncio.gather(*uploads):
        succeeded(answer)
    succeeded(await put(memory, "c.md"))
    assert not memory.runtime.cases.documents.under_way


async def test_one_microdao_does_not_take_all_conversions(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
):
    opened, running = asyncio.Event(), []
    convert = SandboxedConverter.convert

    async def held(self: SandboxedConverter, path: str, data: bytes) -> Any:
        if path.startswith("held"):
            running.append(path)
            await opened.wait()
        return await convert(self, path, data)

    monkeypatch.setattr(SandboxedConverter, "convert", held)
    count = documents.AT_ONCE + 1
    uploads = [asyncio.ensure_future(put(memory, f"held{n}.md")) for n in range(count)]

    async def started() -> bool:
        return len(running) == documents.AT_ONCE_EACH

    async def arrived() -> bool:
        return memory.runtime.cases.documents.under_way["microdao:7"] == count

    await eventually(arrived)
    await eventually(started)
    succeeded(await put(memory, "a.md", microdao="microdao:8"))
    assert len(running) == documents.AT_ONCE_EACH
    opened.set()
    for answer in await asyncio.gather(*uploads):
        succeeded(answer)


async def test_agents_read_documents_and_others_write_them(
    database_url: str, tmp_path: Path, embedder: HashingEmbedder, events: RecordedEvents
):
    may = {"agents": ["agent:sofia"], "microdaos": ["microdao:7"]}
    access = access_control(
        "internal-secret",
        "operator-secret",
        principals={
            "agent": Grants(kind="agent", **may),
            "person": Grants(kind="person", **may),
        },
        keys={key: kind for kind, key in KEYS.items()},
    )
    params = {"microdao_id": "microdao:7", "path": "a.md"}
    async with memory_application(
        database_url, tmp_path, embedder, events, access=access
    ) as memory:
        agent, person = ({"Authorization": f"Bearer {key}"} for key in KEYS.values())

        async def status(method: str, headers: dict[str, str]) -> int:
            answer = await memory.client.request(
                method, "/documents", params=params, content=b"text", headers=headers
            )
            return answer.status_code

        assert await status("PUT", agent) == 403
        assert await status("PUT", person) == 200
        assert await status("DELETE", agent) == 403
        listed = await memory.client.get(
            "/documents", params={"microdao_id": "microdao:7"}, headers=agent
        )
        assert [each["path"] for each in succeeded(listed)["items"]] == ["a.md"]
        assert await status("DELETE", person) == 200
