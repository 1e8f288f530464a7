"""Records usage until it is killed.

    python -m tests.support.llm.usage_child DATABASE_URL FOLDER NAME

The id of each record that the writer kept goes to the standard output, after `record` returned.
Every fiftieth call begins and never ends; its id is printed, too.
"""

import asyncio
import os
import random
import sys
from dataclasses import replace
from pathlib import Path

from backends.postgres.pool import Database
from contracts.errors import Overloaded
from contracts.llm.usage import AttemptRecord
from tests.support.events import RecordedEvents
from tests.support.llm.ledger_writer import LedgerOptions, LedgerWriter
from tests.support.llm.usage import usage_record

OPTIONS = LedgerOptions(
    file_bytes=64 * 1024,
    max_bytes=32 * 1024 * 1024,
    flush_interval_s=0.02,
    adopt_interval_s=0.1,
    max_backoff_s=0.2,
)


async def main(url: str, folder: Path, name: str) -> None:
    database = Database(url, events=RecordedEvents())
    await database.open()
    writer = LedgerWriter(database, folder, events=RecordedEvents(), options=OPTIONS)
    await writer.start()
    number = 0
    while True:
        for _ in range(random.randint(1, 40)):
            number += 1
            tries = random.randint(1, 3)
            record = usage_record(
                request_id=f"{name}-{number}",
                prompt_tokens=number,
                agent_id="agent:" + "x" * random.randint(1, 200),
                attempts=tries,
                tries=tuple(
                    AttemptRecord("openai", "gpt", "ok", 1.0, prompt_tokens=number)
                    for _ in range(tries)
                ),
            )
            dropped = writer.statistics().dropped
            try:
                ticket = writer.begin(replace(record, outcome="lost", attempts=1, tries=()))
            except Overloaded:
                break
            if number % 50:
                writer.record(record, ticket)
            if writer.statistics().dropped == dropped:
                os.write(1, f"{record.id}\n".encode())
        await asyncio.sleep(random.random() * 0.01)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
