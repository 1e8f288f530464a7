"""Exact limits across replicas: a sliding window whose units are leased out. Pure; time comes in as an argument.

The authority (one per cluster) keeps, for each key, the units used within the last window and the leases that are
out. A replica spends its lease without a call and settles it when it asks for the next one. What is out counts as
used, so the limit is never exceeded, whatever the replicas do; a lease that is not settled in time counts as spent at
its expiry. Under-admission is bounded by one lease per replica, and leases shrink with what is left.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field

BUCKETS_PER_WINDOW = 600
LEASE_TTL_S = 2.0
SETTLE_GRACE_S = 1.0
LEASE_FRACTION = 8
"""A lease is at most this fraction of what is left, so that replicas share a nearly exhausted limit fairly."""
LEASES_PER_WINDOW = 60
"""A lease is at most 1/60 of the limit: about a second's worth at full rate."""
MAX_KEYS = 200_000


@dataclass(frozen=True, slots=True)
class Grant:
    """`units` may be spent within `ttl_s` seconds from when they were asked for. Zero units: ask again after `retry_after_s`."""

    lease_id: int
    units: int
    ttl_s: float
    left: int
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class Settlement:
    """What of a former lease was not used."""

    lease_id: int
    unused: int


class SlidingWindow:
    """Units used within the last `window_s` seconds, on a grid of 1/600 of it. A unit counts to the end of its cell."""

    def __init__(self, window_s: float) -> None:
        self._window = window_s
        self._width = window_s / BUCKETS_PER_WINDOW
        self._cells: deque[list[int]] = deque()
        self._used = 0

    def add(self, moment: float, units: int) -> None:
        """Counts `units` at `moment`, which may lie in the past."""
        if units <= 0:
            return
        cell = math.ceil(moment / self._width)
        at = len(self._cells)
        while at and self._cells[at - 1][0] > cell:
            at -= 1
        if at and self._cells[at - 1][0] == cell:
            self._cells[at - 1][1] += units
        else:
            self._cells.insert(at, [cell, units])
        self._used += units

    def used(self, now: float) -> int:
        """Units that still count at `now`."""
        while self._cells and self._cells[0][0] * self._width <= now - self._window:
            self._used -= self._cells.popleft()[1]
        return self._used

    def next_free_s(self, now: float) -> float:
        """Seconds until the oldest units stop counting; zero when there are none."""
        self.used(now)
        return self._cells[0][0] * self._width + self._window - now if self._cells else 0.0


@dataclass(slots=True)
class _Account:
    window: SlidingWindow
    leases: dict[int, tuple[int, float]] = field(default_factory=dict)

    def outstanding(self) -> int:
        return sum(units for units, _ in self.leases.values())


class LeaseBook:
    """The authority's book: one sliding window and the open leases of each key."""

    def __init__(self, window_s: float = 60.0, ttl_s: float = LEASE_TTL_S) -> None:
        self._window_s = window_s
        self._ttl_s = ttl_s
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        self._next_id = 1

    def lease(self, key: str, limit: int, want: int, now: float, settled: Settlement | None = None) -> Grant:
        """Settles a former lease of `key`, then grants up to `want` units under `limit` units per window."""
        account = self._account(key, now)
        if settled is not None:
            self._settle(account, settled, now)
        self._expire(account, now)
        left = max(0, limit - account.window.used(now) - account.outstanding())
        units = min(want, lease_size(limit, left))
        if units == 0:
            return Grant(0, 0, 0.0, left, self._retry_after_s(account, now))
        lease_id, self._next_id = self._next_id, self._next_id + 1
        account.leases[lease_id] = (units, now)
        return Grant(lease_id, units, self._ttl_s, left - units, 0.0)

    def _settle(self, account: _Account, settled: Settlement, now: float) -> None:
        lease = account.leases.pop(settled.lease_id, None)
        if lease is not None:
            account.window.add(now, lease[0] - min(max(settled.unused, 0), lease[0]))

    def _expire(self, account: _Account, now: float) -> None:
        bound = now - self._ttl_s - SETTLE_GRACE_S
        for lease_id in [lease_id for lease_id, (_, granted) in account.leases.items() if granted <= bound]:
            units, granted = account.leases.pop(lease_id)
            account.window.add(granted + self._ttl_s, units)

    def _retry_after_s(self, account: _Account, now: float) -> float:
        if account.leases:
            oldest = min(granted for _, granted in account.leases.values())
            return max(0.0, min(oldest + self._ttl_s + SETTLE_GRACE_S - now, self._window_s))
        return account.window.next_free_s(now)

    def _account(self, key: str, now: float) -> _Account:
        account = self._accounts.get(key)
        if account is None:
            self._make_room(now)
            account = self._accounts[key] = _Account(SlidingWindow(self._window_s))
        self._accounts.move_to_end(key)
        return account

    def _make_room(self, now: float) -> None:
        """Forgets the longest unused keys that hold nothing; beyond twice the bound, whatever is oldest."""
        while len(self._accounts) >= MAX_KEYS:
            key, account = next(iter(self._accounts.items()))
            if len(self._accounts) < 2 * MAX_KEYS and (account.leases or account.window.used(now)):
                break
            del self._accounts[key]


def lease_size(limit: int, left: int) -> int:
    """Units of the next lease: a fraction of what is left, at least one while any is left, at most a second's worth."""
    if left <= 0:
        return 0
    return max(1, min(left // LEASE_FRACTION, math.ceil(limit / LEASES_PER_WINDOW)))
