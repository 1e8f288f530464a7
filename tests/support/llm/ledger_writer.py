"""The ledger's writer over its journal and PostgreSQL, composed as a replica does."""

import time
from dataclasses import dataclass
from pathlib import Path

from backends.journal.journal import MAX_BYTES, SEGMENT_BYTES
from backends.llm.usage_journal import MappedUsageJournal
from backends.llm.usage_ledger import PostgresUsageLedger
from backends.postgres.pool import Database
from contracts.events import EventLog
from services.llm.usage_announcer import UsageAnnouncer
from services.llm.usage_writer import UsageWriter, WriterOptions


@dataclass(frozen=True)
class LedgerOptions(WriterOptions):
    """Rhythm of the writer and bounds of its journal."""

    segment_bytes: int = SEGMENT_BYTES
    max_bytes: int = MAX_BYTES


@dataclass(frozen=True)
class LedgerStatistics:
    """What became of the records. `failing_for_s` is None while rows can be written."""

    queued: int
    written: int
    dropped: int
    rejected: int
    damaged_bytes: int
    journal_bytes: int
    failing_for_s: float | None


class LedgerWriter(UsageWriter):
    """A writer that is its own sink, with counters."""

    def __init__(
        self,
        database: Database,
        directory: Path,
        *,
        events: EventLog,
        options: LedgerOptions | None = None,
        name: str = "",
        announcer: UsageAnnouncer | None = None,
    ) -> None:
        options = options or LedgerOptions()
        self.journal = MappedUsageJournal(
            directory,
            events,
            name=name,
            segment_bytes=options.segment_bytes,
            max_bytes=options.max_bytes,
        )
        self.ledger = PostgresUsageLedger(database, events)
        super().__init__(self.journal, self.ledger, events, announcer=announcer, options=options)
        self.begin, self.record = self.journal.begin, self.journal.record

    def statistics(self) -> LedgerStatistics:
        files, since = self.journal._ended, self.failing_since
        return LedgerStatistics(
            queued=files.pending,
            written=self.ledger.written,
            dropped=files.dropped,
            rejected=self.ledger.rejected,
            damaged_bytes=files.damaged,
            journal_bytes=files.size_bytes,
            failing_for_s=None if since is None else time.monotonic() - since,
        )
