"""Passwords are sent by SCRAM only, never to a listener that asks for them in another way."""

import psycopg
import pytest

from backends.postgres.connection import conninfo
from backends.postgres.migrate import migrate
from backends.postgres.pool import Database
from contracts.errors import DatabaseUnavailable
from launcher.errors import StartRefused
from launcher.postgres import DatabaseUrls
from launcher.postgres import url as own_url
from launcher.preflight import check_database
from tests.support.events import RecordedEvents
from tests.support.stores.impostor import CLEARTEXT, MD5, TRUST, postgres_impostor

ASKING = pytest.mark.parametrize(
    "asking", [CLEARTEXT, MD5, TRUST], ids=["cleartext", "md5", "trust"]
)
PASSWORD = 112
"""The type of a message that answers the question, `p`."""


def passwords(heard: list[bytes]) -> list[bytes]:
    return [message for message in heard if message[0] == PASSWORD]


@ASKING
async def test_the_graph_sends_its_password_to_no_impostor(
    asking: bytes, events: RecordedEvents
) -> None:
    async with postgres_impostor(asking) as impostor:
        url = f"postgresql://daarion_service:guarded@127.0.0.1:{impostor.port}/daarion"
        database = Database(url, events=events)
        await database.open()
        with pytest.raises(DatabaseUnavailable):
            await database.ping()
        await database.close()
        with pytest.raises(DatabaseUnavailable, match="require_auth"):
            await migrate(url)
    assert impostor.greeted >= 2
    assert impostor.heard == []


@ASKING
async def test_the_launcher_sends_its_password_to_no_impostor(asking: bytes) -> None:
    async with postgres_impostor(asking) as impostor:
        with pytest.raises(psycopg.OperationalError, match="requirement"):
            await psycopg.AsyncConnection.connect(
                own_url("daarion_owner", "guarded", impostor.port, "daarion"), connect_timeout=5
            )
        with pytest.raises(StartRefused, match="require_auth"):
            await check_database(
                f"postgresql://daarion_service:guarded@127.0.0.1:{impostor.port}/daarion"
            )
    assert impostor.greeted == 2
    assert impostor.heard == []


@pytest.mark.parametrize("said", ["password", "!md5", "md5,password,none"])
async def test_require_auth_in_the_url_overrides_the_default(
    said: str, events: RecordedEvents
) -> None:
    async with postgres_impostor(CLEARTEXT) as impostor:
        database = Database(
            f"postgresql://user:sent@127.0.0.1:{impostor.port}/x?require_auth={said}", events=events
        )
        await database.open()
        with pytest.raises(DatabaseUnavailable):
            await database.ping()
        await database.close()
    assert b"psent\0" in passwords(impostor.heard)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:p@host/db", "scram-sha-256"),
        ("host=/run/postgresql user=u password=p", "scram-sha-256"),
        ("postgresql://u:p@host/db?require_auth=md5", "md5"),
        ("postgresql://u@host/db", "scram-sha-256,none"),
        ("postgresql:///db?host=/run/postgresql", "scram-sha-256,none"),
        ("postgresql://u:p@host/db?sslmode=verify-full", None),
        ("postgresql://u:p@host/db?sslmode=require", "scram-sha-256"),
    ],
)
def test_a_login_with_a_password_demands_scram_unless_the_server_is_known(
    url: str, expected: str | None
) -> None:
    assert psycopg.conninfo.conninfo_to_dict(conninfo(url)).get("require_auth") == expected


async def test_the_real_server_is_logged_in_to(
    database_urls: DatabaseUrls, database: Database
) -> None:
    for url in (database_urls.owner, database_urls.service, database_urls.superuser):
        assert "require_auth=scram-sha-256" in url
        await check_database(url)
    await database.ping()
