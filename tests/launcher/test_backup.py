"""`make backup` and `make restore` with real stores: all of it, during writes, and refusals."""

import asyncio
import os
import re
import stat
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import psycopg

import launcher.backup
from backends.postgres.migrate import migrate
from backends.postgres.pool import Database
from configs.environment import REPOSITORY
from launcher.backup import back_up, restore
from launcher.cluster import programs
from launcher.datadir import DataDir, Part
from launcher.postgres import PostgresServer
from tests.support.events import RecordedEvents
from tests.support.launcher.backups import DOCUMENTS, documents_of, environment_of
from tests.support.llm.ledger_writer import LedgerWriter
from tests.support.llm.usage import usage_record
from tests.support.stores.tables import definitions_of, rows_of

# Both rows in one transaction: a snapshot has both, or neither.
PAIR = """
WITH one AS (
    INSERT INTO memory_postings VALUES ('backup', 'writer', 1, %(number)s, '')
)
INSERT INTO memory_terms VALUES ('backup', 'writer', %(number)s, '')
"""
NUMBERS = """
SELECT (SELECT array_agg(bucket ORDER BY bucket) FROM memory_postings WHERE agent_id = 'writer'),
       (SELECT array_agg(chunk_no ORDER BY chunk_no) FROM memory_terms WHERE agent_id = 'writer')
"""


class Writer(threading.Thread):
    """Commits pair after pair until `stop`; `written` are committed."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._ending = threading.Event()
        self.written = 0

    def run(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            while not self._ending.is_set():
                connection.execute(PAIR, {"number": self.written + 1})
                self.written += 1

    def stop(self) -> int:
        self._ending.set()
        self.join()
        return self.written


async def without_writer(url: str) -> dict[str, list[str]]:
    return {
        table: [row for row in rows if not row.startswith("(backup,writer,")]
        for table, rows in (await rows_of(url)).items()
    }


async def test_a_backup_during_writes_is_restored_as_of_one_moment(source, folders, empty):
    folder = DataDir(source)
    async with PostgresServer(source, durable=False) as server:
        with folder.lock():  # as the launcher holds it
            folder.write_parts([Part("PostgreSQL", server.pid, f"127.0.0.1:{server.port}")])
            writer = Writer(server.urls.superuser)
            writer.start()
            while not writer.written:
                await asyncio.sleep(0.01)
            before = writer.written
            file = await back_up(environment_of(source), folders)
            after = writer.written
            assert writer.stop() > before
        rows = await without_writer(server.urls.superuser)
        definitions = definitions_of(server.urls.superuser)
        assert file.parent == folders
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert [path.name for path in folders.iterdir() if path.name.startswith(".")] == []

        assert all(rows.values())
        made_at = (await restore(environment_of(empty), file)).made_at
        assert f"{made_at:%Y%m%dT%H%M%SZ}" in file.name
        async with PostgresServer(empty, durable=False) as restored:
            assert await without_writer(restored.urls.superuser) == rows
            assert definitions_of(restored.urls.superuser) == definitions
            assert await migrate(restored.urls.owner) == []
            async with await psycopg.AsyncConnection.connect(restored.urls.superuser) as connection:
                postings, terms = await (await connection.execute(NUMBERS)).fetchone()
    assert postings == terms == list(range(1, len(terms) + 1))
    assert before <= len(terms) <= after
    assert documents_of(empty) == {name: text.encode() for name, text in DOCUMENTS.items()}
    for folder in ("kb", "kb/shared"):
        assert stat.S_IMODE((empty / folder).stat().st_mode) == 0o700


async def test_passwords_of_this_directory_are_in_no_archive(source, archive):
    names = zipfile.ZipFile(archive).namelist()
    assert {name.split("/")[0] for name in names} == {"manifest.json", "database.dump", "knowledge"}
    content = b"".join(zipfile.ZipFile(archive).read(name) for name in names)
    for secret in (source / "secrets").iterdir():
        assert secret.read_text().strip().encode() not in content


async def test_usage_that_reaches_postgresql_after_the_snapshot_is_accounted_once(
    source, folders, empty, monkeypatch
):
    events = RecordedEvents()

    async def dump_then_deliver(*arguments: str) -> None:
        await run(*arguments)
        await writer.spool.drain(10, writer.ledger.write)

    run = launcher.backup._run
    async with PostgresServer(source, durable=False) as server:
        database = Database(server.urls.service, events=events)
        await database.open()
        writer = LedgerWriter(database, source / "journal", events=events)
        await writer.spool.open()
        delivered, waiting = usage_record(), usage_record()
        writer.record(delivered)
        await writer.spool.drain(10, writer.ledger.write)
        writer.record(waiting)
        folder = DataDir(source)
        with folder.lock():
            folder.write_parts([Part("PostgreSQL", server.pid, f"127.0.0.1:{server.port}")])
            with monkeypatch.context() as patched:
                patched.setattr(launcher.backup, "_run", dump_then_deliver)
                file = await back_up(environment_of(source), folders / "usage.zip")
        assert not writer.spool.pending
        await writer.spool.close()
        await database.close()
    await restore(environment_of(empty), file)
    async with PostgresServer(empty, durable=False) as server:
        database = Database(server.urls.service, events=events)
        await database.open()
        writer = LedgerWriter(database, empty / "journal", events=events)
        await writer.spool.open()
        await writer.spool.adopt()
        await writer.spool.drain(10, writer.ledger.write)
        await writer.spool.close()
        await database.close()
        async with await psycopg.AsyncConnection.connect(server.urls.superuser) as connection:
            found = await connection.execute(
                "SELECT id, count(*) FROM llm_usage WHERE id = ANY(%s) GROUP BY id",
                [[delivered.id, waiting.id]],
            )
            assert dict(await found.fetchall()) == {delivered.id: 1, waiting.id: 1}


async def test_nothing_is_archived_through_links(source, folders):
    outside = folders / "outside"
    outside.mkdir()
    (outside / "passwd.md").write_text("not theirs")
    shared = source / "kb/shared"
    (shared / "link.md").symlink_to(outside / "passwd.md")
    (shared / "linked").symlink_to(outside)
    os.mkfifo(shared / "pipe.md")
    unnamed = os.fsencode(shared) + b"/\xff.md"
    Path(os.fsdecode(unnamed)).write_text("not UTF-8")
    try:
        file = await back_up(environment_of(source), folders / "links.zip")
    finally:
        for name in ("link.md", "linked", "pipe.md", os.fsdecode(b"\xff.md")):
            (shared / name).unlink()
    found = {name for name in zipfile.ZipFile(file).namelist() if name.startswith("knowledge/")}
    assert found == {f"knowledge/{name}" for name in DOCUMENTS}


async def test_the_documented_commands_move_an_outside_postgresql(source, empty, tmp_path):
    section = (
        (REPOSITORY / "docs/operations.md").read_text().partition("PostgreSQL elsewhere\n\nW")[2]
    )
    saving, restoring = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)[:2]
    empty.mkdir()
    (source / "journal").mkdir(exist_ok=True)
    async with PostgresServer(source, durable=False) as server:
        urls = await server.create_database("other")
        variables = {
            "PATH": f"{programs()}:{os.environ['PATH']}",
            "SUPERUSER_URL": server.urls.superuser,
            "DATABASE_OWNER_URL": urls.owner,
        }
        for commands, folder in ((saving, source), (restoring, empty)):
            subprocess.run(
                ["bash", "-euc", commands],
                env={**variables, "DAARION_DATA_DIR": str(folder)},
                cwd=tmp_path,
                check=True,
            )
        assert await rows_of(urls.superuser) == await rows_of(server.urls.superuser)
    assert documents_of(empty) == documents_of(source)


def test_the_commands_say_what_to_do_next(source, archive, empty, tmp_path):
    def command(folder: Path, *arguments: str) -> tuple[int, str]:
        variables = {"PATH": os.environ["PATH"], "DAARION_DATA_DIR": str(folder)}
        done = subprocess.run(
            [sys.executable, "-m", "launcher", *arguments],
            env=variables,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.stderr == ""
        return done.returncode, done.stdout

    status, screen = command(source, "backup", str(tmp_path))
    [file] = tmp_path.glob("daarion-*.zip")
    assert (status, screen) == (
        0,
        f"{file} holds every tenant's texts: keep it where only you can read\n",
    )
    status, screen = command(empty, "restore", str(file))
    assert (status, screen[:12]) == (0, "restored as ")
    assert screen.endswith(f"start it: DAARION_DATA_DIR={empty} make run\n")
    assert command(empty, "restore", str(file))[0] == 2
    status, screen = command(source, "backup", "/proc")
    assert status == 1
    assert screen.startswith("failed: [Errno ")
