"""Bodies of tools' answers: bounded after decoding, beside other work of the loop."""

import asyncio
import gzip
from types import SimpleNamespace

import pytest

from common.http.inflate import PIECE_BYTES, Undecodable
from executors.http.answers import BodyTooLarge, read_body


class Content:
    def __init__(self, *chunks):
        self.chunks = chunks

    async def iter_any(self):
        for chunk in self.chunks:
            yield chunk


def response(*chunks):
    return SimpleNamespace(
        headers={"Content-Encoding": "gzip"}, content_length=None, content=Content(*chunks)
    )


async def test_the_loop_gets_its_turn_while_a_large_body_is_decoded():
    turns = 0

    async def others():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    size = 16 << 20
    waiting = asyncio.create_task(others())
    body = await read_body(response(gzip.compress(b"0" * size)), size)
    waiting.cancel()
    assert len(body) == size
    assert turns >= size // PIECE_BYTES


@pytest.mark.parametrize(
    "behind", [gzip.compress(b"0" * 101), gzip.compress(b"0" * 60) * 2], ids=["one", "two together"]
)
async def test_every_byte_behind_the_first_member_counts(behind):
    with pytest.raises(BodyTooLarge):
        await read_body(response(gzip.compress(b"0"), behind), 100)


async def test_endless_members_without_content_are_refused():
    with pytest.raises(Undecodable):
        await read_body(response(gzip.compress(b"0"), *[gzip.compress(b"") * 1_000] * 100), 100)
