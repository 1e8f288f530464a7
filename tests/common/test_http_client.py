"""`common/http/client.py` against real servers: what its clients send and refuse, and that every
error of httpx2 is mapped.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
from collections.abc import AsyncIterator

import httpx2
import pytest

from common.http.client import HTTPX2_ERRORS, open_client, read_bounded, requested
from common.http.errors import (
    AnswerCutOff,
    AnswerTooLarge,
    ConnectFailed,
    ConnectionBroken,
    ConnectTimedOut,
    HttpError,
    mapped,
)
from tests.support.llm.upstream.sockets import hanging_port, refused_port

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSet-Cookie: a=b\r\n\r\nok"


@contextlib.asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Yields a server that sends `answer` and closes, and the heads of the requests."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", heads


async def get(url: str, limit: int = 1 << 20, **options: object) -> tuple[int, bytes]:
    async with open_client(**options) as client, requested(client, "GET", url) as response:
        return response.status_code, await read_bounded(response, limit)


def every_error(root: type[Exception]) -> set[type[Exception]]:
    return {root}.union(*(every_error(error) for error in root.__subclasses__()))


def test_every_failure_of_httpx2_has_a_name_of_ours() -> None:
    raised = every_error(httpx2.HTTPError) | every_error(httpx2.InvalidURL)
    never = {  # base classes, and the error that only `raise_for_status` raises
        httpx2.HTTPError,
        httpx2.RequestError,
        httpx2.TransportError,
        httpx2.HTTPStatusError,
    }
    own = {error for error in raised - never if error.__module__.partition(".")[0] == "httpx2"}
    assert {
        error.__name__ for error in own if mapped(error("x"), HTTPX2_ERRORS) is HttpError
    } == set()
    assert len(own) > 15


async def test_an_answer_and_what_is_sent() -> None:
    async with (
        answering(OK) as (url, heads),
        open_client(headers={"X-Own": "значення", "user-agent": "x"}) as client,
    ):
        for _ in range(2):
            async with requested(client, "GET", url, headers={"X-Key": "ключ"}) as response:
                assert await read_bounded(response, 2) == b"ok"
        assert len(heads) == 2
        assert heads[0].lower().count(b"user-agent:") == 1
        assert b"cookie" not in heads[1].lower()
        assert b"accept-encoding: identity" in heads[1].lower()
        assert "x-key: ключ".encode() in heads[1].lower()


@contextlib.asynccontextmanager
async def answering_once_per_connection() -> AsyncIterator[tuple[str, list[bytes]]]:
    """Yields a server that keeps a connection and closes it on its second request, unanswered."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(OK)
            await writer.drain()
            heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", heads


async def test_a_get_is_repeated_once_when_a_kept_connection_ends() -> None:
    async with answering_once_per_connection() as (url, heads), open_client() as client:
        for requests in (1, 3, 5):  # the connection of each repetition is kept, too
            async with requested(client, "GET", url) as response:
                assert await read_bounded(response, 2) == b"ok"
            assert len(heads) == requests


async def test_a_post_is_never_repeated() -> None:
    async with answering_once_per_connection() as (url, heads), open_client() as client:
        async with requested(client, "POST", url, content=b"") as response:
            assert await read_bounded(response, 2) == b"ok"
        with pytest.raises(ConnectionBroken):
            async with requested(client, "POST", url, content=b""):
                pass
        assert len(heads) == 2


async def test_a_get_on_a_new_connection_is_never_repeated() -> None:
    async with answering(b"") as (url, heads):
        with pytest.raises(ConnectionBroken):
            await get(url)
        assert len(heads) == 1


async def test_urls_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with answering(OK) as (url, _):
        await get(f"{url}/?text=confidential")
    assert "confidential" not in caplog.text


async def test_redirects_are_answers() -> None:
    answer = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n"
    async with answering(answer) as (url, _):
        assert await get(url) == (302, b"")


async def test_the_environments_proxies_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with answering(OK) as (url, _):
        assert await get(url) == (200, b"ok")


async def test_a_compressed_body_is_bounded_after_decompression() -> None:
    bomb = gzip.compress(bytes(64 << 20), compresslevel=9)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
    async with answering(head % len(bomb) + bomb) as (url, _):
        with pytest.raises(AnswerTooLarge):
            await get(url)
    small = gzip.compress(b"ok")
    async with answering(head % len(small) + small) as (url, _):
        assert await get(url) == (200, b"ok")


FAILURES = {
    "closed": (b"", ConnectionBroken),
    "no HTTP": (b"SSH-2.0\r\n\r\n", ConnectionBroken),
    "cut": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", AnswerCutOff),
    "another encoding": (
        b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\nok",
        AnswerCutOff,
    ),
}


@pytest.mark.parametrize(("answer", "error"), FAILURES.values(), ids=FAILURES)
async def test_failures_after_connecting(answer: bytes, error: type[HttpError]) -> None:
    async with answering(answer) as (url, _):
        with pytest.raises(error) as raised:
            await get(url)
        assert type(raised.value) is error


async def test_failures_to_connect() -> None:
    with refused_port() as port, pytest.raises(ConnectFailed):
        await get(f"http://127.0.0.1:{port}")
    with hanging_port() as port, pytest.raises(ConnectTimedOut):
        await get(f"http://127.0.0.1:{port}", connect_s=0.2)
    for url in ("http://no-such-host.invalid", "ftp://127.0.0.1", "http://[::1"):
        with pytest.raises(ConnectFailed):
            await get(url)
