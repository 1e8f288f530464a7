"""The messages between replicas and the limit authority, and the constants that both use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from contracts.llm.limits import Limit, LimitKey, Meter

WINDOW_S = 60.0
CELL_S = 0.5
"""Spent units count to the end of their cell: at most this much too long, never too short."""
PERIODS = 5
"""Days or months that both sides remember, for clocks that are set."""
TTL_S = 2.0
"""How long a replica may spend its units, from the moment it sent the last report that was
answered."""
GRACE_S = 1.0
"""How much longer the authority waits before it takes a silent replica for dead."""
HEARTBEAT_S = 1.0
LEASE_FRACTION = 8
"""A lease is at most this fraction of what is left, so that replicas share a nearly exhausted limit
fairly."""
LEASES_PER_WINDOW = 60
"""A lease is at most 1/60 of the limit: about a second's worth at full rate."""

SLIDING: frozenset[Meter] = frozenset({"requests_per_minute", "tokens_per_minute"})

Slot = int | str
"""What spent units count in: a cell of the replica's monotonic clock, or a UTC day or month."""


def cell_of(moment: float) -> int:
    """Returns the cell of a moment, numbered by its end."""
    return math.ceil(moment / CELL_S)


@dataclass(frozen=True, slots=True)
class Line:
    """One limit in a replica's report.

    `spent` pairs slots with the units spent in them, since the replica's start: all slots that
    changed since the last answered report, or all that still count when joining. `period` is the
    present day or month by the replica's clock. `held` is reserved by running calls, `free` is for
    further calls. `need`: units missing for all waiting calls, beyond `free`; `least`: units
    missing for the smallest of them. A line that `asks` is answered by a grant.
    """

    key: LimitKey
    limit: int
    period: str
    spent: tuple[tuple[Slot, int], ...]
    held: int
    free: int
    least: int = 0
    need: int = 0
    asks: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """A replica's units and needs; `number` grows with every report.

    `now` is the replica's monotonic clock. A `joining` report holds all of the replica's lines.
    """

    replica: str
    generation: str
    number: int
    now: float
    lines: tuple[Line, ...]
    joining: bool = False
    peers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Grant:
    """The authority's answer to one line.

    `units` is 0 when the smallest need cannot be met: retry after `retry_after_s`. `left` is what
    remains after this grant, `spent` what this replica spent in the line's period. `pending`: the
    authority learns what replicas hold, or reads the ledger, and grants nothing yet.
    """

    units: int
    left: int
    retry_after_s: float = 0.0
    spent: int = 0
    pending: Literal["", "learning", "ledger"] = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """The authority's answer. Unless `known`, join first."""

    generation: str
    known: bool
    grants: Mapping[LimitKey, Grant] = field(default_factory=dict)
    peers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Standing:
    """How a limit stands at the authority; `reset_s` is None where time alone frees nothing."""

    key: LimitKey
    used: int
    reserved: int
    left: int
    reset_s: float | None


class Authority(Protocol):
    """The limit authority, wherever it runs."""

    async def exchange(self, report: Report) -> Reply:
        """Sends a report, returns the reply. Raises LimitsUnavailable: no authority answers."""

    async def standing(self, limits: Sequence[Limit]) -> Sequence[Standing]:
        """Returns how limits stand, in their order. Raises LimitsUnavailable."""

    async def ping(self) -> None:
        """Raises LimitsUnavailable while it grants nothing."""


def lease_size(limit: int, left: int) -> int:
    """Units of a lease: a fraction of what is left, at most a second's worth, at least one."""
    if left <= 0:
        return 0
    return max(1, min(left // LEASE_FRACTION, math.ceil(limit / LEASES_PER_WINDOW)))
