"""Medians, ratios and the table."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from statistics import median
from typing import Any, TypeVar

from benchmarks.llm.load import Load
from benchmarks.llm.streams import StreamLoad

Result = TypeVar("Result", Load, StreamLoad)


def middle(rounds: Sequence[Result]) -> Result:
    """Returns the median of each value over the rounds; requests and errors are summed."""
    summed = {"requests", "streams", "errors"}
    values = {
        item.name: (sum if item.name in summed else median)(
            [getattr(one, item.name) for one in rounds]
        )
        for item in fields(rounds[0])
    }
    return type(rounds[0])(**values)


def whole_table(connections: int, rounds: dict[str, list[Load]], baseline: str | None) -> list[str]:
    """Returns the lines for one number of connections.

    `added` are p50 and p99 above the system named by `baseline`, if any.
    """
    middles = {name: middle(found) for name, found in rounds.items()}
    base = middles.get(baseline or "")
    return [
        _row(
            str(connections),
            name,
            f"{one.requests_per_s:,.0f}",
            _ms(one.p50_ms),
            _ms(one.p99_ms),
            *(
                (_ms(one.p50_ms - base.p50_ms), _ms(one.p99_ms - base.p99_ms))
                if base and one is not base
                else ("", "")
            ),
            _ms(one.cpu_ms),
            f"{one.memory_mib:,.0f}",
            f"{one.growth_kib:,.0f}",
            _errors(one.errors),
        )
        for name, one in middles.items()
    ]


def stream_table(connections: int, rounds: dict[str, list[StreamLoad]], baseline: str) -> list[str]:
    """The same for streams; `added` are p50 and p99 to the first token above the baseline's."""
    middles = {name: middle(found) for name, found in rounds.items()}
    base = middles[baseline]
    return [
        _row(
            str(connections),
            name,
            f"{one.streams_per_s:,.1f}",
            _ms(one.first_p50_ms),
            _ms(one.first_p99_ms),
            *(
                (
                    _ms(one.first_p50_ms - base.first_p50_ms),
                    _ms(one.first_p99_ms - base.first_p99_ms),
                )
                if one is not base
                else ("", "")
            ),
            _ms(one.total_p50_ms),
            _ms(one.cpu_ms),
            f"{one.memory_mib:,.0f}",
            f"{one.growth_kib:,.0f}",
            _errors(one.errors),
        )
        for name, one in middles.items()
    ]


WHOLE_HEAD = (
    "connections",
    "system",
    "requests/s",
    "p50 ms",
    "p99 ms",
    "added p50",
    "added p99",
    "CPU s/1k",
    "MiB",
    "KiB/1k",
    "",
)
STREAM_HEAD = (
    "connections",
    "system",
    "streams/s",
    "first p50",
    "first p99",
    "added p50",
    "added p99",
    "total p50",
    "CPU s/1k",
    "MiB",
    "KiB/1k",
    "",
)


@dataclass(frozen=True)
class Names:
    """Which systems are compared in the verdicts; without peers that were not measured."""

    upstream: str
    floor: str
    relay: str
    proxy: str
    litellm: str
    portkey: str


def verdicts(
    whole: dict[int, dict[str, list[Load]]],
    streams: dict[int, dict[str, list[StreamLoad]]],
    names: Names,
) -> list[str]:
    """Returns one line for each bound of this run: found, wanted, and whether it is met."""
    lines = ["", "Bounds"]
    if 32 in whole:
        rates = {name: middle(found).requests_per_s for name, found in whole[32].items()}
        for name, wanted in (
            (names.litellm, 13.0),
            (names.portkey, 1.5),
            (names.relay, 2.5),
            (names.floor, 0.28),
        ):
            if name in rates:
                times = rates[names.proxy] / rates[name]
                lines.append(
                    _verdict(
                        f"requests/s at 32 connections as a multiple of {name}",
                        times,
                        wanted,
                        at_least=True,
                    )
                )
    if 1 in whole:
        ours, base = middle(whole[1][names.proxy]), middle(whole[1][names.upstream])
        lines.append(_verdict("added p50 at one connection, ms", ours.p50_ms - base.p50_ms, 1.2))
        lines.append(
            _verdict("p99 at one connection as a multiple of p50", ours.p99_ms / ours.p50_ms, 5.0)
        )
    if 1 in streams:
        first, least = middle(streams[1][names.proxy]), middle(streams[1][names.upstream])
        lines.append(
            _verdict(
                "added to the first token of one stream, p50, ms",
                first.first_p50_ms - least.first_p50_ms,
                2.0,
            )
        )
    return lines


def _verdict(what: str, found: float, wanted: float, *, at_least: bool = False) -> str:
    met = found >= wanted if at_least else found <= wanted
    bound = f"{'at least' if at_least else 'at most'} {wanted:g}"
    return f"{'met' if met else 'MISSED':>11}  {what}: {found:.2f} ({bound})"


def heading(title: str, head: Sequence[str]) -> list[str]:
    """Returns a title and the column heads."""
    return ["", title, _row(*head)]


def ratios(whole: dict[int, dict[str, list[Load]]], proxy: str) -> list[str]:
    """Returns per number of connections how many times faster the proxy is than each system."""
    lines = ["", f"Requests/s of {proxy} divided by"]
    for connections, rounds in whole.items():
        ours = middle(rounds[proxy]).requests_per_s
        parts = [
            f"{name} {ours / middle(found).requests_per_s:.2f}"
            for name, found in rounds.items()
            if name != proxy
        ]
        lines.append(f"{connections:>11}  " + ",  ".join(parts))
    return lines


def setting(rounds: int, seconds: float) -> str:
    """Returns one line on where and how it was measured."""
    load = os.getloadavg()[0]
    machine = (
        f"{os.cpu_count()} CPUs, Python {platform.python_version()}, load average before {load:.1f}"
    )
    return f"{machine}; medians of {rounds} rounds of {seconds:g} s"


def as_json(found: dict[int, dict[str, list[Result]]]) -> dict[str, Any]:
    """Returns medians and single rounds, ready for JSON."""
    return {
        str(connections): {
            name: {"median": asdict(middle(one)), "rounds": [asdict(each) for each in one]}
            for name, one in rounds.items()
        }
        for connections, rounds in found.items()
    }


def _row(first: str, second: str, *cells: str) -> str:
    return f"{first:>11}  {second:<26}" + "".join(f"{cell:>12}" for cell in cells)


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _errors(count: int) -> str:
    return f"{count} errors" if count else ""
