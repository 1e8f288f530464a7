"""The pin: aiohttp connects only to addresses that this resolver has checked under the policy."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor

from aiohttp.abc import AbstractResolver, ResolveResult

from executors.http.addresses import parse_address
from executors.http.egress import EgressPolicy

Lookup = Callable[[str, int, socket.AddressFamily], Awaitable[list[str]]]
"""From host, port and family to addresses; raises OSError."""


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
