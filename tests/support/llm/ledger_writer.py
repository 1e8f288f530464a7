"""The ledger's writer over its spool and PostgreSQL, composed as a replica does."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from backends.llm.spool_file import SUFFIX, SpoolFile
from backends.llm.spool_lines import ENDED, spool_line
from backends.llm.usage_ledger import PostgresUsageLedger
from backends.llm.usage_spool import FILE_BYTES, MAX_BYTES, SPOOL_NAME, UsageSpool
from backends.postgres.pool import Database
from contracts.events import EventLog
from contracts.llm.usage import UsageRecord
from services.llm.usage_writer import UsageAnnouncer, UsageWriter, WriterOptions


@dataclass(frozen=True)
class LedgerOptions(WriterOptions):
    """Rhythm of the writer and bounds of its spool."""

    file_bytes: int = FILE_BYTES
    max_bytes: int = MAX_BYTES


@dataclass(frozen=True)
class LedgerStatistics:
    """What became of the records. `failing_for_s` is None while rows can be written."""

    queued: int
    written: int
    dropped: int
    rejected: int
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
        self.spool = UsageSpool(
            directory,
            events,
            name=name,
            file_bytes=options.file_bytes,
            max_bytes=options.max_bytes,
        )
        self.ledger = PostgresUsageLedger(database, events)
        super().__init__(self.spool, self.ledger, events, announcer=announcer, options=options)
        self.begin = self.spool.begin

    def record(self, record: UsageRecord, ticket: int | None = None) -> None:
        """Records a call's end; without `ticket` its beginning first."""
        self.spool.record(record, self.begin(record) if ticket is None else ticket)

    def statistics(self) -> LedgerStatistics:
        since = self.failing_since
        return LedgerStatistics(
            queued=self.spool.pending,
            written=self.ledger.written,
            dropped=self.spool.dropped,
            rejected=self.ledger.rejected,
            journal_bytes=self.spool.size_bytes,
            failing_for_s=None if since is None else time.monotonic() - since,
        )


def leave_records(folder: Path, records: Iterable[bytes]) -> Path:
    """Leaves the file of a dead process with records of ended calls; returns its path."""
    path = folder / f"{SPOOL_NAME}-1-{uuid4().hex}{SUFFIX}"
    file = SpoolFile.create(path, FILE_BYTES)
    for number, record in enumerate(records):
        file.append(spool_line(ENDED, number, record), records=1)
    file.close(delete=False)
    return path
