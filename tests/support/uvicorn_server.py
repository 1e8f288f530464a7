"""An ASGI application behind a real HTTP server in this process."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import uvicorn

JSON = {"content-type": "application/json"}
"""For clients that post bytes."""


@contextlib.asynccontextmanager
async def served(app, *, root_path="", lifespan="off"):
    """Yields the server's base URL (with `root_path`); binds a free port on loopback."""
    # Without a named protocol asyncio leaves Nagle on: each answer would take 40 ms more.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        rooted(app, root_path), log_level="error", lifespan=lifespan, access_log=False
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        async with asyncio.timeout(10):
            while not server.started:
                await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}{root_path}"
    finally:
        server.should_exit = True
        server.force_exit = True
        await task
        listener.close()


def rooted(app, root_path):
    async def rooted(scope, receive, send):
        await app(
            {**scope, "root_path": root_path} if scope["type"] == "http" else scope, receive, send
        )

    return rooted
