"""`make backup` and `make restore`: what cannot be rebuilt, in one archive for its owner alone.

It is a ZIP file, which has a checksum for each of its members and its table of contents at the end,
so that an unfinished one is recognised:

    manifest.json        format, time, and the migrations that the database has
    journal/             usage records that PostgreSQL may not hold yet
    database.dump        one consistent snapshot, in pg_dump's custom format
    knowledge/           the knowledge base's folders, `shared` and `microdao`

The journal is copied before the snapshot is taken: a record that reaches PostgreSQL in between is
in both, and is counted once when it is read again. In the opposite order it would be in neither.
"""

from __future__ import annotations

import os
import shutil
import stat
import zlib
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row
from pydantic import AwareDatetime

from backends.postgres.migrate import MIGRATIONS, READ_LEDGER, check_history, read_migrations
from configs.environment import Environment
from configs.memory import MemorySettings
from configs.yaml_files import load_yaml
from contracts.shapes import Strict
from launcher.cluster import SUPERUSER, cause, programs
from launcher.datadir import DataDir
from launcher.errors import ServiceFailed, StartRefused
from launcher.postgres import DATABASE, PostgresServer
from launcher.postgres import url as own_url
from launcher.process import Command, run_tool

_MANIFEST, _DUMP = "manifest.json", "database.dump"
# Every start creates the extension, which only a superuser may.
_DUMPING = ("--format=custom", "--exclude-extension=vector")
_RESTORING = ("--no-owner", "--exit-on-error", "--single-transaction")
_TIMEOUT_S = 24 * 3600.0
# What zipfile and pydantic raise for a file that is no archive of ours, or no longer whole.
_UNREADABLE = (
    BadZipFile, EOFError, KeyError, NotImplementedError, OSError, RuntimeError, TypeError,
    ValueError, zlib.error,
)  # fmt: skip


class Manifest(Strict):
    """`format` grows when an older version could not restore what a newer one has written."""

    format: Literal[1] = 1
    made_at: AwareDatetime
    migrations: list[dict[str, Any]]
    """Rows of `schema_migrations`."""


async def back_up(environment: Environment, file: Path) -> Path:
    """Writes the archive `file`, or one named by the time into the folder `file`; returns its path.

    The graph may run. Where PostgreSQL does not, it is started for as long as this takes.

    Args:
        environment: names the data directory and the configuration.
        file: an absolute path.

    Raises:
        ConfigurationError: the file exists or its folder does not, there is no database, or it is
            not of this launcher.
        ServiceFailed: PostgreSQL or pg_dump failed.
        OSError: a file cannot be read, or the archive cannot be written.
    """
    now = datetime.now(UTC)
    target = _new_file(file, now)
    journal, *knowledge = _folders(environment).items()
    async with AsyncExitStack() as stack:
        url = await _running_or_started(environment, stack)
        draft = Path(stack.enter_context(TemporaryDirectory(prefix=".backup-", dir=target.parent)))
        with ZipFile(draft / target.name, "w", ZIP_DEFLATED) as archive:
            manifest = Manifest(made_at=now, migrations=await _migrations(url))
            archive.writestr(_MANIFEST, manifest.model_dump_json(indent=1))
            _add(archive, *journal)
            await _run("pg_dump", url, *_DUMPING, f"--file={draft / _DUMP}")
            archive.write(draft / _DUMP, _DUMP, ZIP_STORED)  # compressed already
            for name, folder in knowledge:
                _add(archive, name, folder)
        (draft / target.name).chmod(0o600)
        os.sync()
        (draft / target.name).rename(target)
    return target


async def restore(environment: Environment, file: Path) -> Manifest:
    """Fills an empty data directory from an archive, as the owner of the database, who may do no
    more than the migrations. After a failure nothing is left behind.

    Raises:
        ConfigurationError: the archive is damaged or of another version, or the directory is used.
        ServiceFailed: PostgreSQL or pg_restore failed.
        OSError: a file cannot be written.
    """
    data_dir, folders = DataDir(environment.data_dir), _folders(environment)
    _refuse_elsewhere(elsewhere=environment.database_url is not None)
    archive, manifest = _open(file)
    data_dir.prepare()
    with archive, data_dir.lock():
        for folder in (data_dir.postgres, data_dir.nats, *folders.values()):
            _refuse_used(folder)
        try:
            async with PostgresServer(data_dir.root) as server:
                with TemporaryDirectory(dir=data_dir.root) as draft:
                    dump = archive.extract(_DUMP, draft)
                    await _run("pg_restore", server.urls.owner, *_RESTORING, dump)
            _extract(archive, folders)
        except BaseException:
            for folder in (data_dir.postgres, *folders.values()):
                shutil.rmtree(folder, ignore_errors=True)
            raise
    return manifest


def _new_file(file: Path, now: datetime) -> Path:
    folder = file.parent if file.suffix == ".zip" else file
    if not folder.is_dir():
        raise StartRefused(
            f"there is no folder {folder}: create it, or name a file that ends with .zip"
        )
    target = file / f"daarion-{now:%Y%m%dT%H%M%SZ}.zip" if file.is_dir() else file
    if target.exists():
        raise StartRefused(f"{target} exists: name a new file, or a folder")
    return target


def _folders(environment: Environment) -> dict[str, Path]:
    """Returns the folders by their names in the archive, the journal first."""
    settings = load_yaml(environment.config_dir / "memory.yaml", MemorySettings)
    shared, microdaos = settings.knowledge_base.folders(environment.data_dir)
    return {
        "journal": environment.data_dir / "journal",
        "knowledge/shared": shared,
        "knowledge/microdao": microdaos,
    }


async def _running_or_started(environment: Environment, stack: AsyncExitStack) -> str:
    """Returns the superuser's URL: row security hides rows from the owner."""
    data_dir = DataDir(environment.data_dir)
    running = data_dir.read_parts().get("PostgreSQL")
    _refuse_elsewhere(elsewhere=running.pid is None if running else bool(environment.database_url))
    if running is not None:
        _, _, port = running.address.rpartition(":")
        return own_url(SUPERUSER, data_dir.secret("postgres_superuser"), int(port), DATABASE)
    if not (data_dir.postgres / "PG_VERSION").exists():
        raise StartRefused(f"{data_dir.root} holds no database: set DAARION_DATA_DIR")
    stack.enter_context(data_dir.lock())
    return (await stack.enter_async_context(PostgresServer(data_dir.root))).urls.superuser


def _refuse_elsewhere(*, elsewhere: bool) -> None:
    if elsewhere:
        raise StartRefused(
            "PostgreSQL runs elsewhere (DATABASE_URL), where its own programs make a backup: "
            "docs/operations.md, section Backup, shows how"
        )


async def _migrations(url: str) -> list[dict[str, Any]]:
    async with await psycopg.AsyncConnection.connect(url, row_factory=dict_row) as connection:
        return await (await connection.execute(READ_LEDGER)).fetchall()


def _add(archive: ZipFile, name: str, folder: Path) -> None:
    """Adds the regular files below `folder`, but those that vanish meanwhile.

    Nothing below it is reached through a symbolic link, not even through one that replaces a file
    at this moment: whoever writes documents of one microDAO could have any file archived.
    """
    top = folder.resolve()
    for path, _, files, descriptor in os.fwalk(top, onerror=_unless_gone) if top.is_dir() else ():
        for file in files:
            member = "/".join((name, *Path(path).relative_to(top).parts, file))
            with suppress(FileNotFoundError, UnicodeEncodeError):  # the graph reads UTF-8 names
                mode = os.stat(file, dir_fd=descriptor, follow_symlinks=False).st_mode
                if member.encode() and stat.S_ISREG(mode):
                    opened = os.open(file, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=descriptor)
                    with (
                        os.fdopen(opened, "rb") as source,
                        archive.open(member, "w", force_zip64=True) as copy,
                    ):
                        shutil.copyfileobj(source, copy)


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _open(file: Path) -> tuple[ZipFile, Manifest]:
    """Reads the whole archive, and checks that this version can restore it."""
    if not file.is_file():
        raise StartRefused(f"there is no file {file}: name an archive that `make backup` wrote")
    try:
        archive = ZipFile(file)
        if archive.testzip() is not None or _DUMP not in archive.namelist():
            raise BadZipFile
        manifest = Manifest.model_validate_json(archive.read(_MANIFEST))
        check_history(manifest.migrations, read_migrations(MIGRATIONS))
    except _UNREADABLE as error:
        raise StartRefused(
            f"{file} is damaged or no archive of a backup that this version can restore: "
            "name another one, or restore it with the version that made it"
        ) from error
    return archive, manifest


def _extract(archive: ZipFile, folders: Mapping[str, Path]) -> None:
    for name, folder in folders.items():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for member in archive.infolist():
            if member.filename.startswith(f"{name}/"):
                member.filename = member.filename.removeprefix(f"{name}/")
                archive.extract(member, folder)  # drops `..` from names


def _refuse_used(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        raise StartRefused(
            f"{folder} holds data, which a restore would mix with older data: "
            "set DAARION_DATA_DIR to an empty folder, or move this one away"
        )


async def _run(program: str, url: str, *options: str) -> None:
    # The indexes of vectors are built with what the graph gives them, four times the default.
    parameters = {**conninfo_to_dict(url), "options": "-c maintenance_work_mem=256MB"}
    # Every user of this machine can read arguments, and only their owner variables.
    variables = {"PGPASSWORD": str(parameters.pop("password")), "LC_ALL": "C"}
    argv = [str(programs() / program), f"--dbname={make_conninfo('', **parameters)}", *options]
    status, output = await run_tool(Command(argv, variables, Path("/")), timeout_s=_TIMEOUT_S)
    if status != 0:
        raise ServiceFailed(f"{program} failed: {cause(output)}")
