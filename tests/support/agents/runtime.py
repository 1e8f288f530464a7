"""A small real HTTP server in the place of the agent runtime, or of the neighbours'
messaging-service.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from tests.support.uvicorn_server import served


@dataclass
class Seen:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass
class RecordingServer:
    """Answers with what `answer(seen)` returns: status and JSON, and optionally headers."""

    answer: Any = lambda seen: (202, {})
    seen: list[Seen] = field(default_factory=list)
    url: str = ""

    async def __call__(self, scope, receive, send):
        data, more = b"", True
        while more:
            message = await receive()
            data, more = data + message.get("body", b""), message.get("more_body", False)
        seen = Seen(
            scope["method"],
            scope["path"],
            {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()},
            {name.decode(): value.decode() for name, value in scope["headers"]},
            json.loads(data) if data else None,
        )
        self.seen.append(seen)
        answer = self.answer(seen)
        status, body, *rest = await answer if hasattr(answer, "__await__") else answer
        headers = {"content-type": "application/json", **(rest[0] if rest else {})}
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(n.encode(), v.encode()) for n, v in headers.items()],
            }
        )
        await send(
            {
                "type": "http.response.body",
                "body": body if isinstance(body, bytes) else json.dumps(body).encode(),
            }
        )


@contextlib.asynccontextmanager
async def recording_server(answer=None):
    server = RecordingServer() if answer is None else RecordingServer(answer)
    async with served(server) as url:
        server.url = url
        yield server
