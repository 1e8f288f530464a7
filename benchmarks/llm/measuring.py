"""Loads systems in turn, and compares with what the upstream saw."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import aiohttp
import psutil

from benchmarks.llm.load import CALLER, Load, run_load
from benchmarks.llm.streams import StreamLoad, run_streams
from benchmarks.processes import (
    MODEL,
    NotMeasured,
    cpu_seconds,
    resident_mib,
)

PROMPT_SIZES = {"1 kB": 1_000, "10 kB": 10_000, "100 kB": 100_000, "1 MB": 1_000_000}
PAUSE_S = 0.5


@dataclass(frozen=True)
class System:
    """One thing to measure.

    `relays` says whether each request must arrive at the upstream, `extra` is put into stream
    bodies.

    `processes` finds the processes whose CPU time counts as this system's. A `peer` that cannot
    stream in this setting is left out there, and the report says so. `caller` makes the calls.
    """

    name: str
    url: str
    stream_url: str | None = None
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    relays: bool = True
    extra: str = ""
    peer: bool = False
    processes: Callable[[], list[psutil.Process]] = list
    caller: tuple[str, str] = CALLER


@dataclass(frozen=True)
class Plan:
    """How much to measure."""

    rounds: int
    seconds: float
    connections: tuple[int, ...]
    stream_connections: tuple[int, ...]
    peers: bool = True
    growth: bool = True


@dataclass
class Bench:
    """The systems under load, and the upstream that counts their calls."""

    upstream: str
    systems: list[System]
    plan: Plan

    async def whole(self) -> dict[int, dict[str, list[Load]]]:
        """Measures whole answers."""
        found: dict[int, dict[str, list[Load]]] = {}
        for connections in self.plan.connections:
            found[connections] = {system.name: [] for system in self.systems}
            for number in range(self.plan.rounds + 1):  # the first warms up
                for system in self.systems:
                    load = await self.load(
                        system,
                        connections,
                        self.plan.seconds if number else min(2, self.plan.seconds),
                    )
                    if number:
                        found[connections][system.name].append(load)
                        progress(
                            f"{connections} connections, round {number}, {system.name}: "
                            f"{load.requests_per_s:,.0f} requests/s"
                        )
        return found

    async def streams(self) -> dict[int, dict[str, list[StreamLoad]]]:
        """Measures streams of those systems that have them."""
        found: dict[int, dict[str, list[StreamLoad]]] = {}
        systems = [
            system for system in self.systems if system.stream_url and await self._streams(system)
        ]
        for connections in self.plan.stream_connections:
            found[connections] = {system.name: [] for system in systems}
            for number in range(self.plan.rounds):
                for system in systems:
                    load = await self._stream(system, connections)
                    found[connections][system.name].append(load)
                    progress(
                        f"{connections} streams, round {number + 1}, {system.name}: "
                        f"first token after {load.first_p50_ms:.2f} ms"
                    )
        return found

    async def prompts(self, system: System) -> dict[int, dict[str, list[Load]]]:
        """Measures one system over one connection with longer and longer prompts."""
        found: dict[str, list[Load]] = {name: [] for name in PROMPT_SIZES}
        for name, size in PROMPT_SIZES.items():
            for _ in range(self.plan.rounds):
                found[name].append(await self.load(system, 1, self.plan.seconds, padding=size))
            progress(f"prompts of {name}: {found[name][-1].p50_ms:.2f} ms")
        return {1: found}

    async def _streams(self, system: System) -> bool:
        try:
            await run_streams(
                str(system.stream_url),
                system.headers,
                "probe",
                connections=1,
                seconds=0.1,
                extra=system.extra,
            )
        except NotMeasured:
            if not system.peer:
                raise
            progress(f"{system.name} answers no streams here and is left out of their table")
            return False
        return True

    async def load(
        self, system: System, connections: int, seconds: float, padding: int = 0
    ) -> Load:
        """Loads one system once and compares with what the upstream saw. Raises NotMeasured."""
        run, before, held = (
            secrets.token_hex(6),
            cpu_seconds(system.processes()),
            resident_mib(system.processes()),
        )
        load = await run_load(
            system.url,
            system.headers,
            run,
            connections=connections,
            seconds=seconds,
            padding=padding,
            caller=system.caller,
        )
        used, memory = cpu_seconds(system.processes()) - before, resident_mib(system.processes())
        await self._check(
            system, run, low=load.requests, high=load.requests + load.errors + connections
        )
        growth = (memory - held) * 1024 * 1000 / load.requests
        return replace(
            load, cpu_ms=used * 1000 / load.requests, memory_mib=memory, growth_kib=growth
        )

    async def _stream(self, system: System, connections: int) -> StreamLoad:
        run, before, held = (
            secrets.token_hex(6),
            cpu_seconds(system.processes()),
            resident_mib(system.processes()),
        )
        url, seconds = str(system.stream_url), self.plan.seconds
        load = await run_streams(
            url, system.headers, run, connections=connections, seconds=seconds, extra=system.extra
        )
        used, memory = cpu_seconds(system.processes()) - before, resident_mib(system.processes())
        await self._check(system, run, low=load.streams, high=load.streams + load.errors)
        growth = (memory - held) * 1024 * 1000 / load.streams
        return replace(
            load, cpu_ms=used * 1000 / load.streams, memory_mib=memory, growth_kib=growth
        )

    async def _check(self, system: System, run: str, *, low: int, high: int) -> None:
        """Compares what the upstream saw of a run with what was sent.

        Raises:
            NotMeasured: requests were answered without the upstream, came twice, or shared a body.
        """
        await asyncio.sleep(PAUSE_S)
        async with (
            aiohttp.ClientSession(trust_env=False) as session,
            session.get(f"{self.upstream}/count/{run}") as response,
        ):
            seen: dict[str, int] = await response.json()
        if not system.relays:
            low = high = 0
        if not low <= seen["calls"] <= high:
            raise NotMeasured(
                f"{system.name}: {low} requests were answered, but the upstream saw {seen['calls']}"
            )
        if seen["different_bodies"] != seen["calls"]:
            raise NotMeasured(f"{system.name}: the upstream saw the same body twice")


async def probe(system: System) -> None:
    """Makes one call. Raises NotMeasured unless it is answered as it should be."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Call probe-1"}],
        "metadata": {"agent_id": "agent:a", "microdao_id": "microdao:1"},
    }
    try:
        async with (
            aiohttp.ClientSession(trust_env=False) as session,
            session.post(system.url, json=body, headers=system.headers) as response,
        ):
            text = await response.text()
    except aiohttp.ClientError as error:
        raise NotMeasured(f"{system.name} did not answer: {type(error).__name__}") from None
    if response.status != 200 or (system.relays and "Київ" not in text):
        raise NotMeasured(f"{system.name} answered {response.status}: {text[:200]}")


def progress(text: str) -> None:
    """Shows what is measured now, on stderr."""
    sys.stderr.write(f"\r\033[K{text}" if sys.stderr.isatty() else f"{text}\n")
    sys.stderr.flush()
