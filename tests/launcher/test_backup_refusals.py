"""What `make backup` and `make restore` refuse, and what a failure leaves: nothing."""

import json
import zipfile
from pathlib import Path

import pytest

from launcher.backup import back_up, restore
from launcher.datadir import DataDir, Part
from launcher.errors import ServiceFailed, StartRefused
from tests.support.launcher.backups import environment_of


@pytest.mark.parametrize("used", ["postgres/PG_VERSION", "kb/shared/a.md", "journal/a", "nats/x"])
async def test_a_used_directory_is_refused_and_left_as_it_is(archive, empty, used):
    (empty / used).parent.mkdir(parents=True)
    (empty / used).write_text("18")
    with pytest.raises(StartRefused, match=r"holds data.*DAARION_DATA_DIR"):
        await restore(environment_of(empty), archive)
    assert (empty / used).read_text() == "18"
    assert (empty / "postgres").exists() == used.startswith("postgres")


async def test_a_directory_with_models_and_logs_alone_is_empty(archive, empty):
    for name in ("models/a", "logs/postgres.log"):
        (empty / name).parent.mkdir(parents=True)
        (empty / name).touch()
    empty.chmod(0o700)
    await restore(environment_of(empty), archive)
    assert (empty / "models/a").exists()


def rewritten(archive: Path, target: Path, **changed: bytes | None) -> Path:
    """Returns a whole archive with other contents of some members (None: without it)."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "w") as copy:
        for name in source.namelist():
            content = changed.get(name.partition(".")[0], source.read(name))
            if content is not None:
                copy.writestr(name, content)
    return target


def manifest(archive: Path, **changed: object) -> bytes:
    return json.dumps(json.loads(zipfile.ZipFile(archive).read("manifest.json")) | changed).encode()


async def test_a_damaged_archive_is_refused(archive, empty, tmp_path):
    whole = archive.read_bytes()
    middle = zipfile.ZipFile(archive).getinfo("database.dump").header_offset + 2_000
    damaged = {
        "cut short": whole[: len(whole) // 2],
        "a bit": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "no archive": b"backup",
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
    for number, changed in enumerate(
        (
            {"database": None},
            {"manifest": None},
            {"manifest": b"{}"},
            {"manifest": manifest(archive, format=2)},
            {"manifest": manifest(archive, migrations=[{"name": "x"}])},
        )
    ):
        rewritten(archive, tmp_path / f"changed {number}", **changed)
    for file in (*tmp_path.iterdir(), tmp_path / "missing"):
        says = "damaged or no archive" if file.exists() else "there is no file"
        with pytest.raises(StartRefused, match=says):
            await restore(environment_of(empty), file)
        assert not (empty / "postgres").exists(), file


async def test_migrations_that_this_version_does_not_know_are_refused(archive, empty, tmp_path):
    known = json.loads(zipfile.ZipFile(archive).read("manifest.json"))["migrations"]
    newer = {"version": len(known) + 1, "name": "9999_of_tomorrow", "checksum": "x"}
    changed = {**known[0], "checksum": "x"}
    for migrations, why in (
        ([*known, newer], "9999_of_tomorrow.*use a newer version"),
        ([changed, *known[1:]], f"{known[0]['name']} was changed"),
    ):
        content = manifest(archive, migrations=migrations)
        file = rewritten(archive, tmp_path / "other.zip", manifest=content)
        with pytest.raises(Exception, match=why):
            await restore(environment_of(empty), file)
    assert not (empty / "postgres").exists()


async def test_a_restore_that_fails_leaves_an_empty_directory(archive, empty, tmp_path):
    broken = rewritten(archive, tmp_path / "broken.zip", database=b"PGDMP and nothing more")
    with pytest.raises(ServiceFailed, match="pg_restore failed: pg_restore: error"):
        await restore(environment_of(empty), broken)
    await restore(environment_of(empty), archive)


async def test_what_cannot_be_backed_up_is_refused(source, archive, empty, folders):
    with pytest.raises(StartRefused, match=r"archive\.zip exists: name a new file"):
        await back_up(environment_of(source), archive)
    for missing in ("backups", "backups/a.zip"):
        with pytest.raises(StartRefused, match=r"there is no folder .*/backups: create it"):
            await back_up(environment_of(source), folders / missing)
        assert not (folders / "backups").exists()
    with pytest.raises(StartRefused, match="holds no database: set DAARION_DATA_DIR"):
        await back_up(environment_of(empty), folders / "never.zip")
    elsewhere = environment_of(empty, DATABASE_URL="postgresql://u:p@127.0.0.1:1/x")
    with pytest.raises(StartRefused, match=r"runs elsewhere.*operations\.md"):
        await back_up(elsewhere, folders / "never.zip")
    with pytest.raises(StartRefused, match=r"runs elsewhere.*operations\.md"):
        await restore(elsewhere, archive)
    folder = DataDir(source)
    with folder.lock():
        folder.write_parts([Part("PostgreSQL", None, "as configured")])
        with pytest.raises(StartRefused, match=r"runs elsewhere.*operations\.md"):
            await back_up(environment_of(source), folders / "never.zip")
        with pytest.raises(StartRefused, match="belongs to a running launcher"):
            await restore(environment_of(source), archive)
    assert not (folders / "never.zip").exists()
