"""Plain HTTP calls of the scripted upstream, as its own tests make them."""

from __future__ import annotations

import json

import aiohttp

from tests.support.llm.upstream import ScriptedUpstream

HEADERS = {"Authorization": "Bearer sk-secret-1234567890"}


def body(
    model: str = "m", *, stream: bool = False, text: str = "Привіт, світе", **more: object
) -> dict[str, object]:
    return {
        "model": model,
        "stream": stream,
        "messages": [{"role": "user", "content": text}],
        **more,
    }


async def post(
    client: aiohttp.ClientSession, upstream: ScriptedUpstream, **fields: object
) -> tuple[int, bytes, dict[str, str]]:
    async with client.post(
        f"{upstream.base_url}/chat/completions", json=body(**fields), allow_redirects=False
    ) as response:
        return response.status, await response.read(), dict(response.headers)


async def read_into(received: bytearray, response: aiohttp.ClientResponse) -> None:
    async for piece in response.content.iter_any():
        received += piece


def events(raw: bytes) -> list[dict]:
    found = [
        line.removeprefix("data: ")
        for line in raw.decode().split("\n")
        if line.startswith("data: ")
    ]
    return [json.loads(text) for text in found if text != "[DONE]"]


def text_of(chunks: list[dict]) -> str:
    return "".join(
        chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"]
    )
