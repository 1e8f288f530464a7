"""Who the present work is done for. Ways in set it, clients of our own applications read it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from contracts.access.principals import OURSELVES, Principal

_PRINCIPAL: ContextVar[Principal] = ContextVar("principal", default=OURSELVES)


def acting() -> Principal:
    """Returns the principal that the present task works for; without one, the graph itself."""
    return _PRINCIPAL.get()


def act_as(principal: Principal) -> None:
    """Sets the principal for the rest of this task, and for the tasks that it starts."""
    _PRINCIPAL.set(principal)


@contextmanager
def acting_as(principal: Principal) -> Iterator[None]:
    """Sets the principal within the block."""
    before = _PRINCIPAL.set(principal)
    try:
        yield
    finally:
        _PRINCIPAL.reset(before)
