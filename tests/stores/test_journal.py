"""The chain of segments: what `append` accepted is delivered, the bound holds, and orphans find a
new owner.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backends.journal.journal import Journal
from backends.journal.segment import MINIMUM_BYTES
from contracts.errors import ConfigurationError
from tests.support.events import RecordedEvents

SEGMENT = MINIMUM_BYTES


def make(folder: Path, *, segments: int = 4) -> Journal:
    journal = Journal(
        folder, "test", RecordedEvents(), segment_bytes=SEGMENT, max_bytes=segments * SEGMENT
    )
    journal.open()
    return journal


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = make(tmp_path / "journal")
    yield opened
    opened.close()


def deliver_all(journal: Journal, limit: int = 1000) -> list[bytes]:
    delivered: list[bytes] = []
    for segment in journal.segments():
        while not segment.is_empty:
            batch = segment.read(limit)
            delivered += batch.records
            journal.deliver(segment, batch)
            if not batch.records:
                break
    return delivered


def fill(journal: Journal, *, tend: bool) -> list[bytes]:
    """Appends until the journal refuses; the background's part is done in between where `tend` says
    so.
    """
    kept: list[bytes] = []
    while journal.append(record := b"%06d" % len(kept) + b"." * 94):
        kept.append(record)
        if tend and journal.needs_spare:
            journal.take_spare(journal.create_spare())
    return kept


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_journal_continues_in_its_spare_segment_up_to_the_bound(journal: Journal) -> None:
    kept = fill(journal, tend=True)
    assert len(kept) == pytest.approx(4 * SEGMENT / 108, abs=8)
    assert journal.size_bytes == 4 * SEGMENT
    assert journal.pending == len(kept)
    assert journal.dropped == 1
    assert deliver_all(journal) == kept


def test_without_the_background_task_a_journal_is_one_segment(journal: Journal) -> None:
    assert len(fill(journal, tend=False)) < SEGMENT / 100
    assert journal.size_bytes == SEGMENT


def test_drained_segments_are_used_again_and_the_rest_deleted(
    journal: Journal, tmp_path: Path
) -> None:
    fill(journal, tend=True)
    assert len(names(tmp_path / "journal")) == 4
    deliver_all(journal)
    journal.tidy()
    assert len(names(tmp_path / "journal")) == 2  # the current segment and a spare one
    assert len(fill(journal, tend=True)) > 3 * SEGMENT / 108
    assert journal.size_bytes == 4 * SEGMENT


def test_a_steady_flow_stays_in_one_file(journal: Journal, tmp_path: Path) -> None:
    for number in range(5000):
        assert journal.append(b"%d" % number)
        if number % 20 == 0:
            deliver_all(journal)
    assert len(names(tmp_path / "journal")) == 1


def test_a_drained_journal_leaves_no_file_and_another_waits_for_adoption(tmp_path: Path) -> None:
    drained, full = make(tmp_path), make(tmp_path)
    drained.append(b"delivered")
    deliver_all(drained)
    full.append(b"kept")
    drained.close()
    full.close()
    assert len(names(tmp_path)) == 1
    heir = make(tmp_path)
    heir.take_orphans(heir.adopt_orphans())
    assert heir.pending == 1
    assert deliver_all(heir) == [b"kept"]
    heir.tidy()
    assert len(names(tmp_path)) == 1
    heir.close()
    assert names(tmp_path) == []


def test_a_closed_journal_accepts_no_record(tmp_path: Path) -> None:
    journal = make(tmp_path)
    journal.close()
    assert not journal.append(b"late")
    assert journal.dropped == 1


def test_journals_of_living_processes_are_not_adopted(tmp_path: Path) -> None:
    one, other = make(tmp_path), make(tmp_path)
    one.append(b"mine")
    assert other.adopt_orphans() == []
    assert one.adopt_orphans() == []
    one.close()
    other.close()


def test_an_unreadable_file_is_renamed_and_reported(tmp_path: Path) -> None:
    events = RecordedEvents()
    journal = Journal(tmp_path, "test", events, segment_bytes=SEGMENT, max_bytes=SEGMENT)
    (tmp_path / "test-1-damaged-0001.journal").write_bytes(b"?" * SEGMENT)
    assert journal.adopt_orphans() == []
    assert journal.adopt_orphans() == []
    assert names(tmp_path) == ["test-1-damaged-0001.unreadable"]
    assert events.named("journal.unreadable") == [{"file": "test-1-damaged-0001.journal"}]


def test_only_old_drafts_are_removed(journal: Journal, tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    (folder / "test-1-old-0001.draft").touch()
    long_ago = time.time() - 3600
    os.utime(folder / "test-1-old-0001.draft", (long_ago, long_ago))
    (folder / "test-1-new-0001.draft").touch()
    journal.tidy()
    assert [name for name in names(folder) if name.endswith(".draft")] == ["test-1-new-0001.draft"]


def test_a_directory_that_cannot_be_made_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError):
        make(tmp_path / "file" / "journal")


def test_invalid_bounds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        Journal(tmp_path, "test", RecordedEvents(), segment_bytes=SEGMENT, max_bytes=SEGMENT - 1)


class JournalMachine(RuleBasedStateMachine):
    """Random histories of one process after another: append, deliver, tend, die, be adopted.

    At the end every accepted record was delivered; a record is delivered twice only when its
    process died between handing it over and marking it, which the receiver's ids make harmless.
    """

    folder: Path

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="journal-machine-"))
        self.journal = make(self.folder)
        self.accepted: list[bytes] = []
        self.delivered: list[bytes] = []
        self.repeatable: set[bytes] = set()
        self.number = 0

    @rule(size=st.integers(1, 900))
    def append(self, size: int) -> None:
        record = b"%08d" % self.number + b"." * size
        self.number += 1
        if self.journal.append(record):
            self.accepted.append(record)

    @rule(limit=st.integers(1, 12))
    def deliver_some(self, limit: int) -> None:
        for segment in self.journal.segments():
            batch = segment.read(limit)
            self.delivered += batch.records
            self.journal.deliver(segment, batch)

    @precondition(lambda self: self.journal.needs_spare)
    @rule()
    def add_spare(self) -> None:
        self.journal.take_spare(self.journal.create_spare())

    @rule()
    def tend(self) -> None:
        self.journal.take_orphans(self.journal.adopt_orphans())
        self.journal.tidy()

    @rule(limit=st.integers(1, 12), marked=st.booleans())
    def die_and_restart(self, limit: int, marked: bool) -> None:  # noqa: FBT001
        segment = next(iter(self.journal.segments()), None)
        if segment is not None:
            batch = segment.read(limit)
            self.delivered += batch.records
            if marked:
                self.journal.deliver(segment, batch)
            else:
                self.repeatable.update(batch.records)
        crash(self.journal)
        self.journal = make(self.folder)

    @invariant()
    def the_bound_holds(self) -> None:
        assert self.journal.size_bytes <= 4 * SEGMENT

    def teardown(self) -> None:
        if not hasattr(self, "journal"):
            return
        for _ in range(100):
            self.journal.take_orphans(self.journal.adopt_orphans())
            if not (last := deliver_all(self.journal, 50)):
                break
            self.delivered += last
        self.journal.close()
        left = names(self.folder)
        shutil.rmtree(self.folder)
        assert left == []
        assert set(self.delivered) == set(self.accepted)
        twice = [record for record in set(self.delivered) if self.delivered.count(record) > 1]
        assert set(twice) <= self.repeatable


def crash(journal: Journal) -> None:
    """What the kernel does to a killed process: mappings and locks go, files stay."""
    for segment in [*journal._owned(), *journal._adopted, *journal._retired]:
        segment.close(delete=False)


TestJournalMachine = JournalMachine.TestCase
TestJournalMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
