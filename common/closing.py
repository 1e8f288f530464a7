"""Closes asynchronous iterators: generators can be closed, other iterators need not be."""

from __future__ import annotations


async def close_if_closable(items: object) -> None:
    """Awaits `items.aclose()` where there is such a method."""
    aclose = getattr(items, "aclose", None)
    if aclose is not None:
        await aclose()
