"""Pooled connections, one pool per egress policy: each is used under the policy it was opened."""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp.abc import AbstractResolver

from executors.http.egress import EgressPolicy
from executors.http.resolver import CheckedResolver, Lookup, system_lookup

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


@dataclass
class RequestTrace:
    """The progress of one request. `sent`: the server may have seen it."""

    sent: bool = False


@dataclass
class _Pool:
    session: aiohttp.ClientSession
    users: int = 0


@dataclass(frozen=True)
class _Key:
    policy: EgressPolicy = field(default_factory=EgressPolicy)
    careful: bool = False


class Connections:
    """Sessions by policy. A `careful` one keeps connections for `CAREFUL_KEEPALIVE_S` only.

    A server may close a kept connection just as it is reused; then it is unknown whether the
    request arrived. For a tool with effects that must be very rare.
    """

    def __init__(self, lookup: Lookup | None = None) -> None:
        self._threads = ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="tool-dns")
        self._lookup = lookup or system_lookup(self._threads)
        self._pools: OrderedDict[_Key, _Pool] = OrderedDict()

    @asynccontextmanager
    async def session(
        self, policy: EgressPolicy, *, careful: bool
    ) -> AsyncIterator[aiohttp.ClientSession]:
        """Yields the policy's session. A session in use is never closed to make room.

        A `careful` session first lets the event loop read what has arrived, so that a connection
        that the server has closed is known as closed, and not reused.
        """
        key = _Key(policy, careful)
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
