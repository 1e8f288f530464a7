"""A memory replica as a process that tests kill: `python -m tests.support.memory.process`.

Its embedder is another process (`--embedder`). Both serve HTTP on the given port.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from configs.engines.embedder import RemoteEmbedderSettings
from configs.memory import MemorySettings
from deployments.graph.resources import WingEnvironment
from deployments.memory.wiring import MemoryRuntime
from providers.embeddings import OpenAIEmbedder
from tests.support.access import fixed_access
from tests.support.events import RecordedEvents
from tests.support.memory.application import ingress
from tests.support.memory.hashing_embedder import DIMENSION, vector


async def embeddings(request: Request) -> JSONResponse:
    texts = (await request.json())["input"]
    data = [{"index": index, "embedding": vector(text)} for index, text in enumerate(texts)]
    return JSONResponse(
        {"data": data, "model": "hashing", "usage": {"prompt_tokens": 1, "total_tokens": 1}}
    )


async def serve(app: object, port: int) -> None:
    await uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, log_level="error")).serve()


async def replica(database_url: str, data_dir: Path, port: int, embedder_port: int) -> None:
    settings = RemoteEmbedderSettings.model_validate(
        {
            "type": "openai_compatible",
            "served_name": "hashing",
            "version": "hashing-1",
            "dimension": DIMENSION,
            "base_url": f"http://127.0.0.1:{embedder_port}",
            "model": "hashing",
        }
    )
    events = RecordedEvents()
    embedder = OpenAIEmbedder(settings, lambda _name: None)
    memory = MemorySettings.model_validate({"knowledge_base": {"interval_s": 0}})
    runtime = MemoryRuntime(
        memory,
        WingEnvironment(database_url, data_dir, "http://127.0.0.1:9", fixed_access()),
        embedder,
        events,
    )
    await runtime.open()
    await serve(ingress(runtime, events), port)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--embedder", action="store_true")
    parser.add_argument("--port", type=int)
    parser.add_argument("--embedder-port", type=int)
    parser.add_argument("--database-url")
    parser.add_argument("--data-dir", type=Path)
    arguments = parser.parse_args()
    if arguments.embedder:
        asyncio.run(
            serve(
                Starlette(routes=[Route("/embeddings", embeddings, methods=["POST"])]),
                arguments.port,
            )
        )
    else:
        asyncio.run(
            replica(
                arguments.database_url, arguments.data_dir, arguments.port, arguments.embedder_port
            )
        )


if __name__ == "__main__":
    main()
