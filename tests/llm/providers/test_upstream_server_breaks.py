"""The scripted upstream breaks off, and notices clients that leave."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from tests.support.llm.upstream_calls import body, post, read_into


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["reset_before_headers", "close_before_headers"])
async def test_breaks_off_before_headers(client, upstream, name, stream):
    with pytest.raises(
        (aiohttp.ServerDisconnectedError, ConnectionResetError, aiohttp.ClientOSError)
    ):
        await post(client, upstream, model=name, stream=stream)
    await upstream.wait_idle()
    assert {call.state for call in upstream.requests} == {"dropped"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["reset_mid_body", "cut"])
async def test_breaks_off_in_the_middle(client, upstream, name, stream):
    async with client.post(
        f"{upstream.base_url}/chat/completions",
        json=body(model=name, stream=stream, text="a b c d"),
    ) as response:
        assert response.status == 200
        received = bytearray()
        with pytest.raises(
            (aiohttp.ClientPayloadError, ConnectionResetError, aiohttp.ClientOSError)
        ):
            await read_into(received, response)
    assert b"Echo" in received if stream else received
    assert b"[DONE]" not in received
    assert b'finish_reason": "stop' not in received


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["silence", "stall", "keepalive", "role_only", "slow?wait_s=60"])
async def test_a_client_that_leaves_is_seen(client, upstream, name, stream):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await post(client, upstream, model=name, stream=stream)
    await upstream.wait_for(cancelled=1)
    assert upstream.open_calls == 0


async def test_a_client_that_leaves_a_gigantic_answer_stops_it(client, upstream):
    for stream in (False, True):
        async with client.post(
            f"{upstream.base_url}/chat/completions", json=body(model="gigantic", stream=stream)
        ) as response:
            await response.content.read(1_000_000)
            response.close()
    await upstream.wait_for(cancelled=2)
    assert all(call.bytes_sent < 50_000_000 for call in upstream.requests)
