"""Usage spools of processes that write, drain, fill up and die."""

from pathlib import Path
from typing import Any
from uuid import UUID

import orjson

from backends.llm.usage_spool import UsageSpool
from contracts.errors import Overloaded
from contracts.llm.usage import UsageRecord
from tests.support.events import RecordedEvents
from tests.support.llm.usage import usage_record

FILE = 64 * 1024


class NotWritten(Exception):
    pass


class Ledger:
    """Takes batches; refuses them while `away`, and after its `last` one."""

    def __init__(self) -> None:
        self.away = False
        self.last = -1
        self.sizes: list[int] = []
        self.records: list[dict[str, Any]] = []

    async def write(self, records: list[bytes]) -> None:
        if self.away or len(self.sizes) == self.last:
            raise NotWritten
        self.sizes.append(len(records))
        self.records += [orjson.loads(record) for record in records]

    @property
    def ids(self) -> list[UUID]:
        return [UUID(str(record["id"])) for record in self.records]


async def opened(folder: Path, events: RecordedEvents, **bounds: int) -> UsageSpool:
    spool = UsageSpool(folder, events, **{"file_bytes": FILE, "max_bytes": 64 * FILE, **bounds})
    await spool.open()
    return spool


async def drained(spool: UsageSpool, ledger: Ledger, rows: int = 100) -> None:
    adopted = True
    while adopted or spool.pending:
        await spool.adopt()
        adopted = bool(spool._adopted)
        await spool.drain(rows, ledger.write)


def call(spool: UsageSpool, record: UsageRecord | None = None) -> UUID:
    record = record or usage_record()
    spool.record(record, spool.begin(record))
    return record.id


def begin_all(spool: UsageSpool) -> list[tuple[UsageRecord, int]]:
    """Lets calls begin until one is refused."""
    begun = []
    while True:
        record = usage_record()
        try:
            begun.append((record, spool.begin(record)))
        except Overloaded:
            return begun


def crash(spool: UsageSpool) -> None:
    """What the kernel does to a killed process: locks go, files stay."""
    for file in (*spool._files, *spool._adopted):
        file.close(delete=False)
