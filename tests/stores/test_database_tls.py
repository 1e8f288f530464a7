"""`sslmode=verify-full`: who shows another certificate than the right one is refused, and why."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from backends.postgres.migrate import migrate
from contracts.errors import DatabaseUnavailable
from launcher.errors import StartRefused
from launcher.postgres import DatabaseUrls
from launcher.preflight import check_database
from tests.support.stores.tls import Authority, SystemServer, behind_tls, system_programs

HOST = "localhost"
FULL = "sslmode=verify-full"


@dataclass
class Server:
    """A real PostgreSQL behind TLS; `login` is user and password."""

    port: int
    login: str
    database: str
    authority: Path

    def url(self, options: str, host: str = HOST) -> str:
        return f"postgresql://{self.login}@{host}:{self.port}/{self.database}?{options}"

    def verified(self, host: str = HOST) -> str:
        return self.url(f"{FULL}&sslrootcert={self.authority}", host)


@pytest.fixture(params=["in front of the server", "in the server"])
async def server(request, database_urls: DatabaseUrls, tmp_path) -> AsyncIterator[Server]:
    authority = Authority(tmp_path, "authority")
    certificate, key = authority.sign(HOST)
    async with AsyncExitStack() as stack:
        if request.param == "in the server":
            if (programs := system_programs()) is None:
                pytest.skip("no PostgreSQL is installed beside the wheel's, which has no TLS")
            name = stack.enter_context(tempfile.TemporaryDirectory(prefix="daarion-test-"))
            running = SystemServer(programs, Path(name), "guarded", certificate, key)
            await stack.enter_async_context(running)
            port, login, database = running.port, "postgres:guarded", "postgres"
        else:
            own = conninfo_to_dict(database_urls.owner)
            port = await stack.enter_async_context(behind_tls(int(own["port"]), certificate, key))
            login, database = f"{own['user']}:{own['password']}", own["dbname"]
        yield Server(port, login, database, authority.file)


async def refusals(url: str) -> list[str]:
    """Returns what the launcher says, and what the graph does."""
    with pytest.raises(StartRefused) as start:
        await check_database(url)
    with pytest.raises(DatabaseUnavailable) as later:
        await migrate(url)
    return [start.value.message, later.value.message]


async def test_the_right_certificate_is_connected_to(server: Server) -> None:
    url = server.verified()
    await check_database(url)
    async with await psycopg.AsyncConnection.connect(url) as connection:
        assert connection.pgconn.ssl_in_use
        assert await (await connection.execute("SELECT 1")).fetchone() == (1,)


async def test_a_certificate_of_another_authority_is_refused(server: Server, tmp_path) -> None:
    other = Authority(tmp_path, "stranger").file
    for why in await refusals(server.url(f"{FULL}&sslrootcert={other}")):
        assert "no authority in sslrootcert of DATABASE_URL has signed" in why


async def test_a_certificate_for_another_host_is_refused(server: Server) -> None:
    for why in await refusals(server.verified("127.0.0.1")):
        assert "certificate of DATABASE_URL's server is for another host" in why


async def test_a_missing_file_of_authorities_is_named(server: Server, tmp_path) -> None:
    for why in await refusals(server.url(f"{FULL}&sslrootcert={tmp_path / 'none.crt'}")):
        assert "sslrootcert of DATABASE_URL is no readable file" in why


async def test_an_expired_certificate_is_refused(database_urls: DatabaseUrls, tmp_path) -> None:
    authority = Authority(tmp_path, "authority")
    own = conninfo_to_dict(database_urls.owner)
    async with behind_tls(int(own["port"]), *authority.sign(HOST, days=-1)) as port:
        server = Server(port, f"{own['user']}:{own['password']}", own["dbname"], authority.file)
        for why in await refusals(server.verified()):
            assert "or it has expired" in why


async def test_a_server_without_tls_is_refused(database_urls: DatabaseUrls, tmp_path) -> None:
    own = conninfo_to_dict(database_urls.owner)
    authority = Authority(tmp_path, "authority").file
    login, port = f"{own['user']}:{own['password']}", int(own["port"])
    server = Server(port, login, own["dbname"], authority)
    for why in await refusals(server.verified("127.0.0.1")):
        assert "offers no TLS" in why
