"""The recorder of a run: saves in the background, and saves that are waited for."""

import asyncio
from types import SimpleNamespace

import pytest

from contracts.agents.runs import StepRecord
from contracts.errors import DatabaseUnavailable
from services.agents.run_recorder import RunRecorder


class _Notes:
    """A run store whose first writes fail, each write taking less time than the one before it."""

    def __init__(self, failures: int) -> None:
        self.written: list[int] = []
        self._failures = failures
        self._pause_s = 0.03

    async def note(self, run, lease_s) -> bool:
        steps = len(run.steps)
        self._pause_s /= 3
        await asyncio.sleep(self._pause_s)
        if self._failures > 0:
            self._failures -= 1
            raise DatabaseUnavailable("away")
        self.written.append(steps)
        return True


@pytest.mark.parametrize(("failures", "written"), [(0, [1, 2]), (1, [2]), (2, [2])])
async def test_a_required_save_comes_last_even_after_failed_background_saves(failures, written):
    run = SimpleNamespace(steps=[], attempt=1)
    store = _Notes(failures)
    recorder = RunRecorder(run, store, 60.0, None)
    for _ in range(2):
        run.steps.append(StepRecord(kind="llm"))
        recorder.save_soon()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await recorder.ensure_saved()
    assert store.written == written
