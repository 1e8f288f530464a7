"""HTTP for the MCP library over our own connections, under the egress policy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import aiohttp
import httpx2

from executors.http.connections import Connections
from executors.http.egress import EgressDenied, EgressPolicy, parse_target

HOP_HEADERS = frozenset(
    {"host", "connection", "content-length", "transfer-encoding", "accept-encoding"}
)
CHUNK_BYTES = 64 << 10


class EgressRefused(httpx2.ConnectError):
    """The egress policy does not allow the source's address."""


class PolicedTransport(httpx2.AsyncBaseTransport):
    """Sends each request through a session of the policy, which checks resolved addresses.

    `max_bytes` bounds each answer's body. Raises httpx2's errors: EgressRefused and ConnectError
    before anything was sent, ReadError for an answer that breaks off or grows too long.
    """

    def __init__(self, connections: Connections, policy: EgressPolicy, *, max_bytes: int) -> None:
        self._connections = connections
        self._policy = policy
        self._max_bytes = max_bytes

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends one request; streams the answer's body."""
        body = await request.aread()
        async with AsyncExitStack() as stack:
            response = await self._send(stack, request, body)
            held = stack.pop_all()
        stream = _Body(response, held, self._max_bytes)
        headers = [
            (name, value)
            for name, value in response.raw_headers
            if name.lower() not in {b"content-encoding", b"content-length"}
        ]
        return httpx2.Response(response.status, headers=headers, stream=stream, request=request)

    async def _send(
        self, stack: AsyncExitStack, request: httpx2.Request, body: bytes
    ) -> aiohttp.ClientResponse:
        headers = [
            (name, value)
            for name, value in request.headers.multi_items()
            if name.lower() not in HOP_HEADERS
        ]
        try:
            target = parse_target(str(request.url))
            self._policy.check(target)
            session = await stack.enter_async_context(
                self._connections.session(self._policy, careful=False)
            )
            return await stack.enter_async_context(
                session.request(
                    request.method,
                    target.url,
                    data=body or None,
                    headers=[*headers, ("Accept-Encoding", "identity")],
                    allow_redirects=False,
                )
            )
        except EgressDenied as denied:
            raise EgressRefused(str(denied), request=request) from None
        except aiohttp.ClientConnectorError as error:
            raise httpx2.ConnectError(
                "the MCP server cannot be reached", request=request
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise httpx2.ReadError(
                "the MCP server broke the connection", request=request
            ) from error


class _Body(httpx2.AsyncByteStream):
    """The answer's body; closing it releases the connection."""

    def __init__(
        self, response: aiohttp.ClientResponse, held: AsyncExitStack, max_bytes: int
    ) -> None:
        self._response = response
        self._held = held
        self._max_bytes = max_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        try:
            async for chunk in self._response.content.iter_chunked(CHUNK_BYTES):
                size += len(chunk)
                if size > self._max_bytes:
                    raise httpx2.ReadError("the MCP server's answer is over its bound")
                yield chunk
        except (aiohttp.ClientError, OSError) as error:
            raise httpx2.ReadError("the MCP server's answer broke off") from error

    async def aclose(self) -> None:
        await self._held.aclose()
