"""Random histories of one process after another: calls begin and end, files are drained, processes
die and are adopted.
"""

import asyncio
import shutil
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backends.llm.usage_spool import UsageSpool
from contracts.errors import Overloaded
from contracts.llm.usage import OUTCOME_LOST, UsageRecord
from tests.support.events import RecordedEvents
from tests.support.llm.spool import Ledger, NotWritten, crash, drained
from tests.support.llm.usage import usage_record

FILE = 16 * 1024
BOUND = 6 * FILE


class SpoolMachine(RuleBasedStateMachine):
    """At the end every call that began was written: as it ended, else as `lost`.

    An ended call is never written as `lost`, and is written twice only when a process died between
    a batch and its mark. Lost calls may be written again by each process that adopts them.
    """

    folder: Path

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="spool-machine-"))
        self.loop = asyncio.new_event_loop()
        self.ledger = Ledger()
        self.ended: set[UUID] = set()
        self.running: list[tuple[UsageRecord, int]] = []
        self.lost: set[UUID] = set()
        self.repeatable: set[UUID] = set()
        self.restart()

    def restart(self) -> None:
        self.spool = UsageSpool(self.folder, RecordedEvents(), file_bytes=FILE, max_bytes=BOUND)
        self.loop.run_until_complete(self.spool.open())

    @rule(size=st.integers(0, 250))
    def begin(self, size: int) -> None:
        record = usage_record(agent_id="a" * size)
        try:
            lost = replace(record, outcome=OUTCOME_LOST)
            self.running.append((record, self.spool.begin(lost)))
        except Overloaded:
            assert self.spool.size_bytes > FILE, "a spool with room refuses nothing"

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        record, ticket = self.running.pop(
            data.draw(st.integers(0, len(self.running) - 1), label="which")
        )
        self.spool.record(record, ticket)
        self.ended.add(record.id)

    @rule(rows=st.integers(1, 12), batches=st.integers(0, 3))
    def drain(self, rows: int, batches: int) -> None:
        self.ledger.last = len(self.ledger.sizes) + batches
        with suppress(NotWritten):
            self.loop.run_until_complete(self.spool.drain(rows, self.ledger.write))
        self.ledger.last = -1

    @rule()
    def adopt(self) -> None:
        self.loop.run_until_complete(self.spool.adopt())

    @rule(rows=st.integers(0, 12))
    def die(self, rows: int) -> None:
        """Between writing a batch and marking it, where `rows` says so."""
        for file in (*self.spool._files, *self.spool._adopted):
            if rows and (batch := file.read(rows)):
                known = len(self.ledger.ids)
                self.loop.run_until_complete(self.ledger.write(batch))
                self.repeatable |= set(self.ledger.ids[known:])
                break
        self.lost |= {record.id for record, _ in self.running}
        self.running = []
        crash(self.spool)
        self.restart()

    @invariant()
    def the_bound_holds(self) -> None:
        assert not hasattr(self, "spool") or self.spool.size_bytes <= BOUND
        assert not hasattr(self, "spool") or self.spool.dropped == 0

    def teardown(self) -> None:
        if not hasattr(self, "spool"):
            return
        for record, ticket in self.running:
            self.spool.record(record, ticket)
            self.ended.add(record.id)
        self.loop.run_until_complete(drained(self.spool, self.ledger, 50))
        self.loop.run_until_complete(self.spool.close())
        left = list(self.folder.iterdir())
        shutil.rmtree(self.folder)
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        assert left == []
        counts = Counter(self.ledger.ids)
        assert counts.keys() == self.ended | self.lost
        assert {known for known, count in counts.items() if count > 1} <= (
            self.repeatable | self.lost
        )
        lost = {UUID(found["id"]) for found in self.ledger.records if found["outcome"] == "lost"}
        assert lost == self.lost


TestSpoolMachine = SpoolMachine.TestCase
TestSpoolMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
