"""Starts and ends what runs in the background: tasks, and streams of items."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

RETRY_S = 0.5

T = TypeVar("T")


def spawn(work: Coroutine[Any, Any, T], tasks: set[asyncio.Task[T]]) -> asyncio.Task[T]:
    """Starts `work` and keeps its task in `tasks` until it ends: asyncio itself may lose it."""
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancels `tasks` and returns when all have ended.

    Cancels repeatedly: before Python 3.12, `asyncio.wait_for` (which the database driver uses)
    loses a cancellation that arrives together with the answer it waits for.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=RETRY_S)


async def close_if_closable(items: object) -> None:
    """Closes an asynchronous generator; other iterators need no closing."""
    aclose = getattr(items, "aclose", None)
    if aclose is not None:
        await aclose()
