"""A real HTTP server for OpenAI's `/embeddings` that misbehaves as a test asks."""

from __future__ import annotations

import asyncio
import base64
import struct
from typing import Any

from aiohttp import web

DIMENSION = 8


class EmbeddingsServer:
    """`answer` selects the behaviour; `requests` are the bodies received, `headers` the last."""

    def __init__(self) -> None:
        self.answer = "ok"
        self.requests: list[dict[str, Any]] = []
        self.headers: dict[str, str] = {}
        self.working = self.most_working = 0
        self.url = ""

    async def __aenter__(self) -> EmbeddingsServer:
        application = web.Application()
        application.router.add_post("/v1/embeddings", self._embeddings)
        application.router.add_post("/elsewhere", self._embeddings)
        self._runner = web.AppRunner(application)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        self.working += 1
        self.most_working = max(self.most_working, self.working)
        try:
            return await self._answered(request)
        finally:
            self.working -= 1

    async def _answered(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.headers = dict(request.headers)
        rows = [
            {"object": "embedding", "index": index, "embedding": vector_of(str(text))}
            for index, text in enumerate(body["input"])
        ]
        usage = {
            "prompt_tokens": sum(
                len(text.split() if isinstance(text, str) else text) for text in body["input"]
            ),
            "total_tokens": 0,
        }
        match self.answer:
            case "base64":
                rows = [
                    row
                    | {
                        "embedding": base64.b64encode(
                            struct.pack("<8f", *row["embedding"])
                        ).decode()
                    }
                    for row in rows
                ]
            case "reversed":
                rows.reverse()
            case "short":
                rows = rows[:-1]
            case "narrow":
                rows = [row | {"embedding": row["embedding"][:4]} for row in rows]
            case "zero":
                rows = [row | {"embedding": [0.0] * DIMENSION} for row in rows]
            case "null":
                rows = [row | {"embedding": None} for row in rows]
            case "no json":
                return web.Response(text="<html>")
            case "list":
                return web.json_response([])
            case "slow":
                await asyncio.sleep(5)
            case "steady":
                await asyncio.sleep(0.1)
            case "redirect":
                return web.Response(status=307, headers={"Location": "/elsewhere"})
            case "cut":
                response = web.StreamResponse(headers={"Content-Length": "1000"})
                await response.prepare(request)
                await response.write(b'{"data": [')
                request.transport.close()  # type: ignore[union-attr]
                return response
            case int(status):
                return web.json_response(
                    {"error": {"message": "sk-secret at http://internal"}},
                    status=status,
                    headers={"Retry-After": "7"},
                )
        return web.json_response({"object": "list", "data": rows, "usage": usage})


def vector_of(text: str) -> list[float]:
    """Not of unit length, as some endpoints answer."""
    return [float(1 + (hash_of(text) >> shift) % 7) for shift in range(DIMENSION)]


def hash_of(text: str) -> int:
    return sum((place + 1) * ord(character) for place, character in enumerate(text))
