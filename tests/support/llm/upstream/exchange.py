"""One request at the scripted upstream: what arrived, and the ways to answer or to break off."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.support.llm.upstream.answers import Answer, answer_for, frames


@dataclass
class Call:
    """One recorded request.

    `state`: open, done, cancelled (the client left), dropped (we broke off) or closed (we stopped).
    """

    number: int
    path: str
    headers: dict[str, str]
    body: Any
    peer_port: int = 0
    play: str = ""
    state: str = "open"
    frames_sent: int = 0
    bytes_sent: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    @property
    def model(self) -> str:
        """The model that the body names."""
        return str(self.body.get("model", "")) if isinstance(self.body, dict) else ""

    @property
    def stream(self) -> bool:
        """Whether the body asks for a stream."""
        return isinstance(self.body, dict) and bool(self.body.get("stream"))


class UpstreamExchange:
    """The behaviour's side of one call."""

    def __init__(
        self, request: web.Request, call: Call, options: Mapping[str, Any], use: int
    ) -> None:
        self.request = request
        self.call = call
        self.options = options
        self.use = use  # how often this behaviour was used before
        self.response: web.StreamResponse | None = None

    @property
    def stream(self) -> bool:
        return self.call.stream

    def seconds(self, name: str, default: float) -> float:
        return float(self.options.get(name, default))

    def answer(self, **defaults: Any) -> Answer:
        """The answer to this call; options win over `defaults`."""
        body = self.call.body if isinstance(self.call.body, dict) else {}
        return answer_for(body, {**defaults, **self.options})

    def frames(self, **defaults: Any) -> list[dict[str, Any]]:
        """The chunks of `answer()`; usage on request, as OpenAI does it, or as the options say."""
        asked = (self.call.body.get("stream_options") or {}).get("include_usage") is True
        return frames(self.answer(**defaults), include_usage=asked)

    async def start(
        self,
        content_type: str = "text/event-stream",
        *,
        status: int = 200,
        length: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Sends the status line and headers; without `length` the body is chunked."""
        self.response = web.StreamResponse(
            status=status,
            headers={
                "Content-Type": content_type,
                "X-Request-Id": "req_local",
                **self.options.get("headers", {}),
                **(headers or {}),
            },
        )
        if length is None:
            self.response.enable_chunked_encoding()
        else:
            self.response.content_length = length
        await self.response.prepare(self.request)

    async def write(self, data: bytes) -> None:
        assert self.response is not None
        await self.response.write(data)
        self.call.bytes_sent += len(data)

    async def event(self, chunk: Any) -> None:
        """Sends one SSE event."""
        await self.write(b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n")
        self.call.frames_sent += 1

    async def done(self) -> None:
        await self.write(b"data: [DONE]\n\n")

    async def finish(self) -> None:
        """Ends the body in an orderly way."""
        assert self.response is not None
        await self.response.write_eof()

    async def json(
        self, body: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        await self.body(
            json.dumps(body, ensure_ascii=False).encode(), status=status, headers=headers
        )

    async def body(
        self,
        data: bytes,
        *,
        status: int = 200,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Sends a whole body."""
        await self.start(content_type, status=status, length=len(data), headers=headers)
        await self.write(data)
        await self.finish()

    async def drop(self, *, reset: bool = False) -> None:
        """Breaks the connection, by FIN or RST, after what was written had time to arrive."""
        await asyncio.sleep(0.02)
        transport = self.request.transport
        assert transport is not None
        if reset:
            raw = transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.call.state = "dropped"
        transport.abort()
        await self.hold()

    async def hold(self) -> None:
        """Says nothing more until the client leaves or the server stops."""
        await asyncio.Event().wait()
