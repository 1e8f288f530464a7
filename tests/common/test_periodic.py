import asyncio
from itertools import pairwise

import pytest

from common.periodic import repeating, start_periodic
from common.tasks import end_tasks
from tests.support.virtual_time import run_in_virtual_time


class Turns:
    """Runs of periodic work: each takes `takes_s`, and fails or returns as `outcomes` says."""

    def __init__(self, *outcomes, takes_s=0.0):
        self.outcomes, self.takes_s = list(outcomes), takes_s
        self.at, self.failures = [], []

    async def once(self):
        self.at.append(asyncio.get_running_loop().time())
        outcome = self.outcomes.pop(0) if self.outcomes else None
        await asyncio.sleep(self.takes_s)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def failed(self, error, seconds):
        self.failures.append((type(error), seconds))

    def run(self, until_s, every_s=10.0, **options):
        """Returns when the runs began."""

        async def work():
            task = start_periodic(self.once, every_s, self.failed, name="turns", **options)
            await asyncio.sleep(until_s)
            await end_tasks([task])

        run_in_virtual_time(work())
        return [pytest.approx(at) for at in self.at]


def test_the_times_do_not_drift():
    assert Turns(takes_s=3).run(45) == [10, 20, 30, 40]


def test_times_that_a_long_run_misses_are_left_out():
    assert Turns(takes_s=25).run(95, at_once=True) == [0, 30, 60, 90]


def test_what_has_more_work_goes_on_at_once():
    assert Turns(True, True, False, takes_s=1).run(25) == [10, 11, 12, 22]


def test_a_failure_ends_nothing_and_keeps_the_times():
    turns = Turns(ValueError(), KeyError(), takes_s=4)
    assert turns.run(45) == [10, 20, 30, 40]
    assert turns.failures == [(ValueError, 6), (KeyError, 6)]


def test_pauses_grow_after_failures_up_to_a_bound_and_are_forgotten():
    turns = Turns(*[ValueError()] * 4, None, ValueError())
    turns.run(30, every_s=5, at_once=True, retry_s=(1, 3))
    pauses = [after - before for before, after in pairwise(turns.at)]
    for pause, whole in zip(pauses, [1, 2, 3, 3], strict=False):
        assert whole / 2 <= pause <= whole + 1e-6
    assert pauses[4] == pytest.approx(5)
    assert pauses[5] <= 1 + 1e-6
    announced = [seconds for _, seconds in turns.failures]
    assert announced == [pytest.approx(pause, abs=0.01) for pause in [*pauses[:4], pauses[5]]]


def test_the_interval_may_change():
    seconds = iter([10, 1, 1, 7, 50])
    assert Turns().run(25, every_s=lambda: next(seconds)) == [10, 11, 12, 19]


class Woken(Turns):
    def run_waking(self, wakes_s, until_s, **options):
        async def work():
            wake = asyncio.Event()
            task = start_periodic(self.once, 10, self.failed, name="turns", wake=wake, **options)
            for at in wakes_s:
                asyncio.get_running_loop().call_at(at, wake.set)
            await asyncio.sleep(until_s)
            await end_tasks([task])

        run_in_virtual_time(work())
        return [pytest.approx(at) for at in self.at]


def test_a_wake_up_ends_the_pause_and_moves_no_later_time():
    assert Woken().run_waking([3, 14], 25) == [3, 10, 14, 20]


def test_a_wake_up_during_a_run_leads_to_another_one():
    assert Woken(takes_s=4).run_waking([11], 25) == [10, 14, 20]


def test_a_wake_up_does_not_end_the_pause_after_a_failure():
    assert Woken(ValueError()).run_waking([11, 12, 13], 35) == [10, 20, 20, 30]


def test_a_wake_up_may_be_shared():
    async def work():
        wake, turns = asyncio.Event(), Turns()
        tasks = [
            start_periodic(turns.once, 3_600, turns.failed, name=str(number), wake=wake)
            for number in range(3)
        ]
        await asyncio.sleep(1)
        wake.set()
        await asyncio.sleep(1)
        await end_tasks(tasks)
        return turns.at

    assert run_in_virtual_time(work()) == [1, 1, 1]


@pytest.mark.parametrize("busy", [False, True])
def test_it_ends_at_once_when_it_pauses_and_when_it_works(busy):
    async def work():
        turns = Turns(takes_s=3_600)
        task = start_periodic(turns.once, 3_600, turns.failed, name="turns", at_once=busy)
        await asyncio.sleep(1)
        await end_tasks([task])
        return asyncio.get_running_loop().time(), turns.failures, task.cancelled()

    assert run_in_virtual_time(work()) == (1, [], True)


def test_it_ends_soon_when_a_cancellation_gets_lost():
    async def work():
        async def deaf():
            try:
                await asyncio.sleep(3_600)
            except asyncio.CancelledError:
                return

        turns = Turns()
        task = start_periodic(deaf, 60, turns.failed, name="deaf", at_once=True)
        await asyncio.sleep(1)
        await end_tasks([task])
        return asyncio.get_running_loop().time()

    assert run_in_virtual_time(work()) <= 2


def test_work_that_is_never_done_lets_others_work():
    async def work():
        async def always():
            return True

        turns = Turns()
        task = start_periodic(always, 60, turns.failed, name="always", at_once=True)
        for _ in range(10):
            await asyncio.sleep(0)
        await end_tasks([task])
        return True

    assert run_in_virtual_time(work())


def test_it_repeats_while_a_block_runs():
    async def work():
        turns = Turns(ValueError())
        async with repeating(turns.once, 2, turns.failed):
            await asyncio.sleep(5)
        await asyncio.sleep(10)
        return turns.at, turns.failures, len(asyncio.all_tasks())

    assert run_in_virtual_time(work()) == ([2, 4], [(ValueError, 2)], 1)
