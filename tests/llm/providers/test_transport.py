"""Answers that `providers/transport.py` accepts and refuses, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import zlib

import aiohttp
import pytest

from common.http.errors import (
    AnswerCutOff,
    AnswerTooLarge,
    ConnectionBroken,
    MalformedAnswer,
    TimedOut,
)
from common.http.inflate import PIECE_BYTES
from providers.transport import AIOHTTP_ERRORS, Transport
from tests.support.llm.prepared_answers import LIMIT, answer, answering, chunked, serving, whole

GOOD = {
    "content length": answer(),
    "chunked": chunked(b"o", b"k"),
    "chunked with an extension and trailers": chunked(b"ok", tail=b"0;a=b\r\nX-Sum: 1\r\n\r\n"),
    "until the end of the connection": b"HTTP/1.1 200 OK\r\n\r\nok<end>",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok<end>",
    "interim answers first": b"HTTP/1.1 100 Continue\r\n\r\n"
    b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + answer(),
    "gzip": answer(gzip.compress(b"ok", mtime=0), "Content-Encoding: gzip"),
    "deflate": answer(zlib.compress(b"ok"), "Content-Encoding: deflate"),
    "identity": answer(b"ok", "Content-Encoding: identity"),
}


@pytest.mark.parametrize("one", GOOD.values(), ids=GOOD)
async def test_whole_answers(one: bytes) -> None:
    async with answering(one) as (_, transport):
        assert await whole(transport) == (200, b"ok")


@pytest.mark.parametrize(
    "one", [b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\n\r\n", answer(b"")]
)
async def test_answers_without_a_body(one: bytes) -> None:
    async with answering(one) as (server, transport):
        assert (await whole(transport))[1] == b""
        assert (await whole(transport))[1] == b""
        assert server.opened == 1


@pytest.mark.parametrize("one", [GOOD["chunked"], GOOD["interim answers first"], GOOD["gzip"]])
async def test_bytes_may_come_one_by_one(one: bytes) -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        for at in range(len(one)):
            writer.write(one[at : at + 1])
            await writer.drain()
            await asyncio.sleep(0)

    async with serving(drip) as port:
        transport = Transport(f"http://127.0.0.1:{port}/", {})
        assert await whole(transport) == (200, b"ok")
        await transport.close()


BAD = {
    "no HTTP": (b"SSH-2.0-OpenSSH\r\n\r\n<end>", MalformedAnswer),
    "nothing": (b"<end>", ConnectionBroken),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-<end>", ConnectionBroken),
    "a head without end": (b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 20_000, MalformedAnswer),
    "a header without end": (b"HTTP/1.1 200 OK\r\nX-A: " + b"b" * 200_000, MalformedAnswer),
    "two lengths": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        MalformedAnswer,
    ),
    "another length": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
        MalformedAnswer,
    ),
    "junk behind it": (answer() + b"junk", MalformedAnswer),
    "a negative length": (b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok", MalformedAnswer),
    "another protocol": (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        MalformedAnswer,
    ),
    "cut in a body": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok<end>", AnswerCutOff),
    "cut between chunks": (chunked(b"ok", tail=b"<end>"), AnswerCutOff),
    "a chunk of no size": (chunked(b"ok", tail=b"zz\r\n"), MalformedAnswer),
    "trailers without end": (
        chunked(b"ok", tail=b"0\r\n" + b"X-A: b\r\n" * 150_000),
        MalformedAnswer,
    ),
}
UNDECODABLE = {
    "an encoding that was not asked for": (answer(b"ok", "Content-Encoding: br"), MalformedAnswer),
    "gzip that is none": (answer(b"ok", "Content-Encoding: gzip"), AnswerCutOff),
    "half of a gzip": (
        answer(gzip.compress(b"ok", mtime=0)[:-6], "Content-Encoding: gzip"),
        AnswerCutOff,
    ),
}


@pytest.mark.parametrize(("one", "error"), UNDECODABLE.values(), ids=UNDECODABLE)
async def test_a_body_that_cannot_be_decoded_fails_alone(
    one: bytes, error: type[Exception]
) -> None:
    async with answering(one, answer()) as (server, transport):
        with pytest.raises(error):
            await whole(transport)
        assert await whole(transport) == (200, b"ok")
        assert server.opened == 1, "the connection stays usable"


ENDLESS = {
    "interim answers without end": b"HTTP/1.1 100 Continue\r\n\r\n" * 5_000,
    "a chunk extension without end": chunked(b"ok", tail=b"2;" + b"a" * 1_000_000),
}


@pytest.mark.parametrize("one", ENDLESS.values(), ids=ENDLESS)
async def test_frames_without_content_end_with_the_deadline(one: bytes) -> None:
    async with answering(one, answer()) as (server, transport):
        with pytest.raises(TimedOut):
            await whole(transport, limit_s=1)
        assert await whole(transport) == (200, b"ok")
        assert server.opened == 2


@pytest.mark.parametrize(("one", "error"), BAD.values(), ids=BAD)
async def test_invalid_answers_fail_and_their_connections_are_not_reused(
    one: bytes, error: type[Exception]
) -> None:
    async with answering(one, answer()) as (server, transport):
        async with asyncio.timeout(20):
            with pytest.raises(error) as raised:
                await whole(transport)
            assert type(raised.value) is error
            assert await whole(transport) == (200, b"ok")
        assert server.opened == 2


async def test_bytes_before_the_cut_are_returned() -> None:
    async with answering(chunked(b"one", tail=b"<end>")) as (_, transport):
        exchange = await transport.post(b"{}", connect_s=5)
        assert await exchange.read() == b"one"
        with pytest.raises(AnswerCutOff):
            await exchange.read()
        assert not exchange.ended
        exchange.release()


async def test_the_request_on_the_wire() -> None:
    async with answering(answer()) as (server, transport):
        await whole(transport, b'{"a":1}')
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
        assert body == b'{"a":1}'
        assert head.split(b"\r\n")[0] == b"POST /v1/chat HTTP/1.1"
        lines = set(head.lower().split(b"\r\n")[1:])
        host = (
            b"host: 127.0.0.1:%d" % server.port
            if server.port
            else next(line for line in lines if line.startswith(b"host: 127.0.0.1:"))
        )
        assert lines == {
            host,
            b"accept: */*",
            b"accept-encoding: identity",
            b"authorization: bearer k",
            b"content-length: 7",
            b"content-type: application/json",
            b"user-agent: test",
        }


# --- bounds ---


async def test_a_slow_reader_holds_the_sender_up() -> None:
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LIMIT)
        with contextlib.suppress(ConnectionError):
            for _ in range(LIMIT >> 16):
                writer.write(b"x" * (1 << 16))
                await writer.drain()
                sent += 1 << 16

    sent = 0
    async with serving(flood) as port:
        transport = Transport(f"http://127.0.0.1:{port}/", {})
        exchange = await transport.post(b"{}", connect_s=5)
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.3)
        assert sent < LIMIT // 2, "the rest waits on the other side"
        async with asyncio.timeout(30):
            assert len(await exchange.whole(LIMIT)) == LIMIT
        exchange.release()
        await transport.close()


async def test_a_body_over_the_bound_is_refused_while_it_comes() -> None:
    async with answering(answer(b"x" * 5_000_000)) as (_, transport):
        exchange = await transport.post(b"{}", connect_s=5)
        with pytest.raises(AnswerTooLarge):
            await exchange.whole(1_000_000)
        exchange.release()


async def test_a_decompression_bomb_is_met_piece_by_piece() -> None:
    bomb = gzip.compress(bytes(256 << 20), compresslevel=9)
    assert len(bomb) < 300_000
    async with answering(answer(bomb, "Content-Encoding: gzip")) as (_, transport):
        exchange = await transport.post(b"{}", connect_s=5)
        assert len(await exchange.read()) <= PIECE_BYTES
        with pytest.raises(AnswerTooLarge):
            await exchange.whole(8 << 20)
        exchange.release()


def every_error(root: type[Exception]) -> set[type[Exception]]:
    return {root}.union(*(every_error(error) for error in root.__subclasses__()))


def test_every_failure_of_aiohttp_has_a_name_of_ours() -> None:
    unused = every_error(aiohttp.RedirectClientError) | {aiohttp.UploadAbortedError}
    raised = every_error(aiohttp.ClientError) - {aiohttp.ClientError} - unused
    known = set(AIOHTTP_ERRORS)
    assert {error.__name__ for error in raised if known.isdisjoint(error.__mro__)} == set()
    assert len(raised) > 15
