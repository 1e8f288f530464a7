"""`max_concurrency` bounds the calls before and after a change of the definition together."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from contracts.deadline import Deadline
from contracts.errors import Overloaded
from services.tools.execution import ConcurrencySlots
from tests.support.tools.executions import definition


def tool(most):
    return definition("http://127.0.0.1:9/x", max_concurrency=most)


async def taken(slots, most, stack):
    """Whether a slot was free at once; `stack` holds it."""
    try:
        await stack.enter_async_context(slots.slot(tool(most), Deadline.after(0.05)))
    except Overloaded:
        return False
    return True


@pytest.mark.parametrize(("before", "after", "more"), [(2, 2, 0), (2, 3, 1), (3, 2, 0), (1, 5, 4)])
async def test_calls_before_and_after_a_change_stay_within_the_bound_together(before, after, more):
    slots = ConcurrencySlots()
    async with AsyncExitStack() as running:
        assert [await taken(slots, before, running) for _ in range(before + 1)] == [
            True
        ] * before + [False]
        assert [await taken(slots, after, running) for _ in range(more + 1)] == [True] * more + [
            False
        ]
    async with AsyncExitStack() as running:
        assert [await taken(slots, after, running) for _ in range(after + 1)] == [True] * after + [
            False
        ]


async def test_a_slot_that_gets_free_is_given_to_the_one_who_waits():
    slots = ConcurrencySlots()
    async with AsyncExitStack() as first, AsyncExitStack() as second:
        assert await taken(slots, 1, first)
        waiting = asyncio.create_task(
            second.enter_async_context(slots.slot(tool(1), Deadline.after(30)))
        )
        await asyncio.sleep(0)
        await first.aclose()
        await waiting
