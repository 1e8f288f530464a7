"""The yardstick: what one writes in ten minutes with FastAPI and httpx.

No limits, no ledger, no log, no retries.

    python -m benchmarks.llm.relay --upstream http://127.0.0.1:1234/v1      prints its base URL

One uvicorn worker (uvloop, httptools), one pooled `httpx.AsyncClient`.

"""

from __future__ import annotations

import argparse
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse


def create_app(upstream: str) -> FastAPI:
    """Returns the relay to `upstream`, an OpenAI base URL."""
    limits = httpx.Limits(max_connections=1024, max_keepalive_connections=1024)
    client = httpx.AsyncClient(base_url=upstream, timeout=60, limits=limits, trust_env=False)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await client.aclose()

    app = FastAPI(lifespan=lifespan)

    @app.post("/internal/llm/proxy")
    async def proxy(request: Request) -> dict[str, Any]:
        answer = await client.post("/chat/completions", json=_upstream_body(await request.json()))
        answer.raise_for_status()
        completion = answer.json()
        return {
            "content": completion["choices"][0]["message"]["content"],
            "usage": completion["usage"],
            "provider": "openai",
            "model_resolved": completion["model"],
        }

    @app.post("/internal/llm/stream")
    async def stream(request: Request) -> StreamingResponse:
        body = {**_upstream_body(await request.json()), "stream": True}

        async def forward() -> AsyncIterator[bytes]:
            async with client.stream("POST", "/chat/completions", json=body) as answer:
                async for chunk in answer.aiter_raw():
                    yield chunk

        return StreamingResponse(forward(), media_type="text/event-stream")

    return app


def _upstream_body(body: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != "metadata"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", arguments.port))
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        config = uvicorn.Config(
            create_app(arguments.upstream),
            log_level="warning",
            access_log=False,
            loop="uvloop",
            http="httptools",
        )
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
