"""Pooled connections, one pool per egress policy: each is used under the policy it was opened.

The pin: aiohttp connects only to addresses that `CheckedResolver` has checked under the policy.
"""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from executors.http.addresses import parse_address
from executors.http.egress import EgressPolicy

Lookup = Callable[[str, int, socket.AddressFamily], Awaitable[list[str]]]
"""From host, port and family to addresses; raises OSError."""

MAX_POOLS = 128
MAX_CONNECTIONS = 128
LOOKUP_THREADS = 8
# Common servers close an idle connection after five seconds; stay below, to meet none half-closed.
KEEPALIVE_S = 4.0
# For calls with effects: well below the idle timeout of any common server, so that a close and a
# new request do not cross.
CAREFUL_KEEPALIVE_S = 1.0
DNS_CACHE_S = 10
# Rounds of the event loop: one to poll the sockets, one to notify their connections.
LOOP_ROUNDS = 2


def system_lookup(executor: Executor) -> Lookup:
    """Returns a look-up by the system's resolver in threads of its own.

    A hanging name server thus blocks no other work.
    """

    async def lookup(host: str, port: int, family: socket.AddressFamily) -> list[str]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            executor, lambda: socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
        )
        return [str(sockaddr[0]) for *_, sockaddr in found]

    return lookup


class CheckedResolver(AbstractResolver):
    """Resolves names under one egress policy. `Host` and TLS still use the name."""

    def __init__(self, policy: EgressPolicy, lookup: Lookup) -> None:
        self._policy = policy
        self._lookup = lookup

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Returns the checked addresses.

        Raises:
            EgressDenied: the policy allows none of them.
            OSError: the name does not resolve.
        """
        texts = dict.fromkeys(await self._lookup(host, port, family))
        addresses = [address for text in texts if (address := parse_address(text)) is not None]
        if not addresses:
            raise OSError(None, "the name has no address")
        return [
            {
                "hostname": host,
                "host": str(address),
                "port": port,
                "family": socket.AF_INET if address.version == 4 else socket.AF_INET6,
                "proto": socket.IPPROTO_TCP,
                "flags": socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            }
            for address in self._policy.admit(host.lower().rstrip("."), port, addresses)
        ]

    async def close(self) -> None:
        """Holds nothing open."""


@dataclass
class RequestTrace:
    """The progress of one request. `sent`: the server may have seen it."""

    sent: bool = False


@dataclass
class _Pool:
    session: aiohttp.ClientSession
    users: int = 0


class Connections:
    """Sessions by policy. A `careful` one keeps connections for `CAREFUL_KEEPALIVE_S` only.

    A server may close a kept connection just as it is reused; then it is unknown whether the
    request arrived. For a tool with effects that must be very rare.
    """

    def __init__(self, lookup: Lookup | None = None) -> None:
        self._threads = ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="tool-dns")
        self._lookup = lookup or system_lookup(self._threads)
        self._pools: OrderedDict[tuple[EgressPolicy, bool], _Pool] = OrderedDict()

    @asynccontextmanager
    async def session(
        self, policy: EgressPolicy, *, careful: bool
    ) -> AsyncIterator[aiohttp.ClientSession]:
        """Yields the policy's session. A session in use is never closed to make room.

        A `careful` session first lets the event loop read what has arrived, so that a connection
        that the server has closed is known as closed, and not reused.
        """
        key = (policy, careful)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = _Pool(
                _open_session(CheckedResolver(policy, self._lookup), careful=careful)
            )
        self._pools.move_to_end(key)
        pool.users += 1
        try:
            if careful:
                for _ in range(LOOP_ROUNDS):
                    await asyncio.sleep(0)
            yield pool.session
        finally:
            pool.users -= 1
            await self._make_room()

    async def _make_room(self) -> None:
        while len(self._pools) > MAX_POOLS:
            idle = next((key for key, pool in self._pools.items() if not pool.users), None)
            if idle is None:
                return
            await self._pools.pop(idle).session.close()

    async def close(self) -> None:
        """Closes every connection."""
        while self._pools:
            await self._pools.popitem()[1].session.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


def _open_session(resolver: AbstractResolver, *, careful: bool) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(
        resolver=resolver,
        family=socket.AF_UNSPEC,
        ttl_dns_cache=DNS_CACHE_S,
        limit=MAX_CONNECTIONS,
        keepalive_timeout=CAREFUL_KEEPALIVE_S if careful else KEEPALIVE_S,
    )
    return aiohttp.ClientSession(
        connector=connector,
        # A cookie would carry one tenant's session to the next.
        cookie_jar=aiohttp.DummyCookieJar(),
        # The call's deadline bounds everything.
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None, sock_read=None),
        auto_decompress=False,
        trust_env=False,
        trace_configs=[_tracing()],
    )


def _tracing() -> aiohttp.TraceConfig:
    trace = aiohttp.TraceConfig()

    async def sent(_session: aiohttp.ClientSession, context: object, _parameters: object) -> None:
        request = getattr(context, "trace_request_ctx", None)
        if isinstance(request, RequestTrace):
            request.sent = True

    trace.on_request_headers_sent.append(sent)
    return trace
