"""The messages between replicas and the limit authority, and the constants that both use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from contracts.llm.limits import Limit, LimitKey, Meter

WINDOW_S = 60.0
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


@dataclass(frozen=True, slots=True)
class Line:
    """One limit in a replica's report.

    `spent` counts from the replica's start, or from the beginning of the calendar `period`;
    `acknowledged` is its value in the last answered report. `held` is reserved by running calls,
    `free` is for further calls. `need`: units missing for all waiting calls, beyond `free`;
    `least`: units missing for the smallest of them; `want`: units for the calls after them.
    `recent` is sent when joining: pairs of (seconds ago, units spent). A replica that dropped the
    limit and counts from zero again sends a higher `incarnation`.
    """

    key: LimitKey
    limit: int
    period: str
    spent: int
    acknowledged: int
    held: int
    free: int
    least: int = 0
    need: int = 0
    want: int = 0
    recent: tuple[tuple[float, int], ...] = ()
    incarnation: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """A replica's units and needs; `number` grows with every report.

    A `joining` report holds all of the replica's lines.
    """

    replica: str
    generation: str
    number: int
    lines: tuple[Line, ...]
    joining: bool = False
    peers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Grant:
    """The authority's answer to one line.

    `units` is 0 when the smallest need cannot be met: retry after `retry_after_s`. `left` is what
    remains after this grant. `pending`: the ledger is still being read.
    """

    key: LimitKey
    units: int
    left: int
    retry_after_s: float = 0.0
    pending: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """The authority's answer. Unless `known`, join first; for `learning_s` nothing is granted."""

    generation: str
    known: bool
    grants: tuple[Grant, ...] = ()
    peers: tuple[str, ...] = ()
    learning_s: float = 0.0


class LeaseSource(Protocol):
    """The authority, wherever it runs."""

    async def exchange(self, report: Report) -> Reply:
        """Sends a report, returns the reply. Raises LimitsUnavailable: no authority answers."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a limit stands at the authority; `reset_s` is None where time alone frees nothing."""

    key: LimitKey
    used: int
    reserved: int
    left: int
    reset_s: float | None


class StandingSource(Protocol):
    """The authority, asked how limits stand."""

    async def standing(self, limits: Sequence[Limit]) -> Sequence[Standing]:
        """Returns the limits in their order. Raises LimitsUnavailable."""


def lease_size(limit: int, left: int) -> int:
    """Units of a lease: a fraction of what is left, at most a second's worth, at least one."""
    if left <= 0:
        return 0
    return max(1, min(left // LEASE_FRACTION, math.ceil(limit / LEASES_PER_WINDOW)))
