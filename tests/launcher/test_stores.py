"""PostgreSQL and NATS as the launcher runs them: real servers from the wheels."""

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nats
import nats.errors
import psutil
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from launcher.errors import StartRefused
from launcher.nats import NatsServer
from launcher.postgres import SERVICE, PostgresServer
from tests.support.stores.outage import killed

REPOSITORY = Path(__file__).resolve().parents[2]


async def ask(url: str, statement: str) -> list[tuple]:
    async with await psycopg.AsyncConnection.connect(
        url, connect_timeout=5, autocommit=True
    ) as connection:
        cursor = await connection.execute(statement)
        return await cursor.fetchall() if cursor.description else []


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    """A data directory with a cluster, made once; tests copy it."""

    async def make(folder: Path) -> None:
        async with PostgresServer(folder, durable=False) as server:
            await ask(server.urls.owner, "CREATE TABLE kept AS SELECT 1 AS x")

    # Not below pytest's folder: another run closes that to the user that the server runs as.
    with tempfile.TemporaryDirectory(prefix="daarion-test-") as name:
        folder = Path(name)
        asyncio.run(make(folder))
        yield folder


@pytest.fixture
def data_dir(cluster, server_folder) -> Path:
    subprocess.run(["cp", "-a", f"{cluster}/.", str(server_folder)], check=True)
    return server_folder


async def test_roles_are_bound_by_row_security(data_dir):
    async with PostgresServer(data_dir, durable=False) as server:
        facts = await ask(
            server.urls.superuser,
            "SELECT rolname, rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb "
            "OR rolreplication FROM pg_roles WHERE rolname LIKE 'daarion%' ORDER BY 1",
        )
        assert facts == [("daarion_owner", False), ("daarion_service", False)]
        assert await ask(
            server.urls.superuser,
            "SELECT pg_has_role('daarion_service', 'daarion_owner', 'MEMBER')",
        ) == [(False,)]
        await ask(
            server.urls.owner,
            "ALTER TABLE kept ENABLE ROW LEVEL SECURITY; GRANT SELECT ON kept TO daarion_service",
        )
        assert await ask(server.urls.service, "SELECT current_user::text, count(*) FROM kept") == [
            (SERVICE, 0)
        ]
        for statement in (
            "CREATE TABLE mine (x int)",
            "CREATE ROLE other",
            "SET ROLE daarion_owner",
            "SELECT pg_read_file('PG_VERSION')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await ask(server.urls.service, statement)


async def test_vectors_and_ukrainian_letters_work(data_dir):
    async with PostgresServer(data_dir, durable=False) as server:
        assert await ask(
            server.urls.service,
            "SELECT '[1,2]'::vector <-> '[1,2]', lower('ЇЖАК Ґ'), "
            "to_tsvector('simple', 'ПРИВІТ')::text",
        ) == [(0.0, "їжак ґ", "'привіт':1")]


async def test_a_wrong_password_is_refused_and_nothing_is_open(data_dir):
    async with PostgresServer(data_dir, durable=False) as server:
        for url in (server.urls.superuser, server.urls.owner, server.urls.service):
            for password in ("wrong", ""):
                with pytest.raises(psycopg.OperationalError, match="password"):
                    await ask(
                        make_conninfo(**{**conninfo_to_dict(url), "password": password}), "SELECT 1"
                    )
        assert await ask(
            server.urls.superuser, "SELECT DISTINCT type, auth_method FROM pg_hba_file_rules"
        ) == [("host", "scram-sha-256")]
        listening = {
            (each.laddr.ip, each.laddr.port)
            for each in psutil.Process(server.pid).net_connections("inet")
            if not each.raddr
        }
        assert listening == {("127.0.0.1", server.port)}
        assert not list(Path("/tmp").glob(f".s.PGSQL.{server.port}*"))


async def test_passwords_and_data_are_private(data_dir):
    async with PostgresServer(data_dir, durable=False) as server:
        for secret in (data_dir / "secrets").iterdir():
            assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        assert stat.S_IMODE((data_dir / "postgres").stat().st_mode) == 0o700
        log = (data_dir / "logs/postgres.log").read_text()
        for url in (server.urls.superuser, server.urls.owner, server.urls.service):
            assert conninfo_to_dict(url)["password"] not in log
        if os.geteuid() == 0:
            assert psutil.Process(server.pid).uids().effective != 0


async def test_a_killed_server_comes_back_under_the_same_urls(data_dir):
    server = PostgresServer(data_dir)
    await server.start()
    try:
        urls = server.urls
        await ask(urls.owner, "INSERT INTO kept VALUES (2)")
        assert await killed(server) == -signal.SIGKILL
        assert server.pid is None
        await server.start()
        assert server.urls == urls
        assert await ask(urls.owner, "SELECT sum(x) FROM kept") == [(3,)]
    finally:
        await server.stop()
    again = PostgresServer(data_dir, durable=False)
    await again.start()
    await again.stop()
    assert again.urls == urls


async def test_a_server_of_a_killed_launcher_is_ended_first(data_dir):
    code = (
        "import asyncio, sys, pathlib; from launcher.postgres import PostgresServer; "
        "server = PostgresServer(pathlib.Path(sys.argv[1]), durable=False); "
        "asyncio.run(server.start()); "
        "print(server.pid, flush=True); input()"
    )
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(data_dir), cwd=REPOSITORY, stdin=-1, stdout=-1
    )
    pid = int(await asyncio.wait_for(child.stdout.readline(), 60))
    psutil.Process(
        pid
    ).suspend()  # a stopped process ignores the kernel's signal, so it still runs at the next start
    child.kill()
    await child.wait()
    assert psutil.pid_exists(pid)
    resume = asyncio.get_running_loop().call_later(0.5, psutil.Process(pid).resume)
    async with PostgresServer(data_dir, durable=False) as server:
        assert server.pid != pid
        assert not psutil.pid_exists(pid)
        assert await ask(server.urls.owner, "SELECT x FROM kept") == [(1,)]
    resume.cancel()


async def test_a_stale_pid_file_that_names_a_stranger_is_no_hindrance(data_dir):
    (data_dir / "postgres/postmaster.pid").write_text(
        f"{os.getpid()}\n{data_dir}/postgres\n1\n1\n\n\n\n"
    )
    async with PostgresServer(data_dir, durable=False) as server:
        assert await ask(server.urls.owner, "SELECT 1") == [(1,)]


async def test_an_initdb_cut_short_leaves_nothing_in_the_way(server_folder):
    (server_folder / ".postgres.draft").mkdir()
    (server_folder / ".postgres.draft/half").write_text("")
    start = asyncio.ensure_future(PostgresServer(server_folder, durable=False).start())
    await asyncio.sleep(0.2)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert not list(server_folder.glob(".postgres.password*"))
    async with PostgresServer(server_folder, durable=False) as server:
        assert await ask(server.urls.owner, "SELECT 1") == [(1,)]


async def test_a_lost_superuser_password_is_reported(data_dir):
    (data_dir / "secrets/postgres_superuser").unlink()
    with pytest.raises(StartRefused, match="is not the one of the cluster"):
        await PostgresServer(data_dir, durable=False).start()


async def test_a_lost_service_password_is_made_anew(data_dir):
    (data_dir / "secrets/postgres_service").unlink()
    async with PostgresServer(data_dir, durable=False) as server:
        assert await ask(server.urls.service, "SELECT 1") == [(1,)]


async def test_another_major_version_is_reported(data_dir):
    (data_dir / "postgres/PG_VERSION").write_text("16\n")
    todo = (
        "made by PostgreSQL 16.*that made it run `make backup`.*with this version.*`make restore`"
    )
    with pytest.raises(StartRefused, match=todo):
        await PostgresServer(data_dir, durable=False).start()


async def test_further_databases_have_the_same_rights(data_dir):
    async with PostgresServer(data_dir, durable=False) as server:
        urls = await server.create_database("another")
        assert await server.create_database("another") == urls
        assert await ask(urls.owner, "SELECT current_database()::text, '[1]'::vector::text") == [
            ("another", "[1]")
        ]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await ask(urls.service, "CREATE TABLE mine (x int)")


async def test_a_server_that_does_not_come_up_says_what_its_log_says(data_dir):
    shutil.rmtree(data_dir / "postgres/global")
    with pytest.raises(Exception, match=r"PostgreSQL did not start: .*global"):
        await PostgresServer(data_dir, durable=False).start()


async def test_nats_keeps_its_streams_over_a_kill(tmp_path):
    async with NatsServer(tmp_path) as server:
        url = server.url
        await _jetstream(url, publish=True)
        os.kill(server.pid, signal.SIGKILL)
        assert await asyncio.wait_for(server.wait(), 5) == -signal.SIGKILL
        await server.start()
        assert server.url == url
        assert await _jetstream(url) == 1
        listening = {
            (each.laddr.ip, each.laddr.port)
            for each in psutil.Process(server.pid).net_connections("inet")
            if not each.raddr
        }
        assert listening == {("127.0.0.1", server.port)}
    async with NatsServer(tmp_path) as server:
        assert server.url == url
        assert await _jetstream(url) == 1


async def test_nats_refuses_strangers_and_hides_its_password(tmp_path):
    async with NatsServer(tmp_path) as server:
        for url in (
            f"nats://127.0.0.1:{server.port}",
            f"nats://daarion:wrong@127.0.0.1:{server.port}",
        ):
            with pytest.raises(Exception, match="Authorization Violation"):
                await nats.connect(
                    url, allow_reconnect=False, max_reconnect_attempts=0, connect_timeout=2
                )
        for secret in (tmp_path / "secrets").iterdir():
            assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        argv = " ".join(psutil.Process(server.pid).cmdline())
        password = (tmp_path / "secrets/nats").read_text()
        assert password not in argv
        assert password not in (tmp_path / "logs/nats.log").read_text()


async def test_both_stores_share_one_folder(tmp_path, cluster):
    async with PostgresServer(tmp_path, durable=False) as postgres, NatsServer(tmp_path) as server:
        assert postgres.port != server.port
        assert await ask(postgres.urls.service, "SELECT 1") == [(1,)]
        assert await _jetstream(server.url, publish=True) == 1


async def _jetstream(url: str, *, publish: bool = False) -> int:
    connection = await nats.connect(url, connect_timeout=5)
    try:
        stream = connection.jetstream()
        if publish:
            await stream.add_stream(name="kept", subjects=["kept.>"])
            await stream.publish("kept.one", b"1")
        return (await stream.stream_info("kept")).state.messages
    finally:
        await connection.close()
