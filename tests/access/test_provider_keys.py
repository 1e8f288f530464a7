"""The keys of an identity provider: read in the background, rotated, away and back."""

import asyncio
import time
from functools import partial
from types import SimpleNamespace

import pytest

from backends.access.jwks import read_keys
from backends.access.principals import PostgresPrincipals
from configs.access import AccessSettings, contents_of, load_access
from configs.environment import read_environment
from configs.proxies import no_proxy
from contracts.errors import Unauthorized, Unavailable, Unreachable
from deployments.graph.resources import Resources, open_access
from services.access.tokens import KEYS_EVERY_S, RETRY_S, Tokens
from tests.support.events import RecordedEvents
from tests.support.identity_provider import (
    AUDIENCE,
    ISSUER,
    IdentityProvider,
    change,
    directory_with,
    section,
)

AWAY = (503, b"maintenance")


class Replica:
    """What one replica knows of the provider. Its clock stands still until `pass_s`."""

    def __init__(self, monkeypatch, jwks):
        self.now = 1_000.0
        clock = SimpleNamespace(monotonic=lambda: self.now, time=time.time)
        monkeypatch.setattr("services.access.tokens.time", clock)
        self.directory = directory_with(section(jwks))
        self.tokens = Tokens(self.directory, partial(read_keys, no_proxy))

    async def pass_s(self, seconds):
        """Lets time pass and the background take its turn."""
        self.now += seconds
        await self.tokens.refresh()

    def waits_s(self, token):
        """Returns the seconds after which the caller is to come again."""
        with pytest.raises(Unavailable) as refused:
            self.tokens.read(token)
        assert refused.value.retryable
        return refused.value.retry_after_s


@pytest.fixture
async def provider():
    return IdentityProvider()


@pytest.fixture
async def url(provider):
    async with provider.serving() as url:
        yield url


@pytest.fixture
def replica(monkeypatch, url):
    return Replica(monkeypatch, url)


async def test_rotated_keys_are_read_when_a_token_names_one(provider, replica):
    await replica.pass_s(0)
    old = provider.token()
    assert replica.tokens.read(old) is not None
    provider.rotate()
    new = provider.token()
    await replica.pass_s(RETRY_S + 1)
    assert provider.reads == 1
    assert replica.waits_s(new) >= 1
    await replica.pass_s(0)
    assert replica.tokens.read(new) is not None
    with pytest.raises(Unauthorized, match="no such key"):
        replica.tokens.read(old)  # remembered no more: its key was withdrawn


async def test_unknown_keys_are_looked_up_once_in_ten_seconds(provider, replica):
    await replica.pass_s(0)
    for _ in range(50):
        for number in range(20):
            with pytest.raises((Unauthorized, Unavailable)):
                replica.tokens.read(provider.token("EdDSA", {"kid": f"guess-{number}"}))
        await replica.pass_s(1)
    assert 1 < provider.reads <= 1 + 50 / RETRY_S


async def test_keys_are_read_from_time_to_time(provider, replica):
    await replica.pass_s(0)
    provider.rotate()
    await replica.pass_s(KEYS_EVERY_S - 1)
    assert provider.reads == 1
    await replica.pass_s(1)
    assert replica.tokens.read(provider.token()) is not None


async def test_the_last_keys_count_while_the_provider_is_away(provider, replica):
    await replica.pass_s(0)
    token = provider.token()
    for provider.answer in (
        AWAY,
        (200, b"{}"),
        (200, b"[]"),
        (200, b'{"keys": 7}'),
        (200, b"\xff"),
    ):
        with pytest.raises(Unavailable):
            await replica.pass_s(KEYS_EVERY_S)
        assert replica.tokens.read(token) is not None
        assert replica.tokens.read(provider.token("ES256")) is not None


async def test_a_provider_that_is_away_at_start_is_found_later(provider, replica):
    provider.answer = AWAY
    token = provider.token()
    assert replica.waits_s(token) >= 1
    with pytest.raises(Unavailable):
        await replica.pass_s(0)
    assert replica.waits_s(token) == RETRY_S
    provider.answer = None
    await replica.pass_s(RETRY_S - 1)
    assert replica.waits_s(token) == 1
    await replica.pass_s(1)
    assert replica.tokens.read(token) is not None


async def test_nobody_listening_and_a_missing_file_are_told_apart_from_a_wrong_answer(tmp_path):
    for place in ("http://127.0.0.1:1/certs", str(tmp_path / "keys.json")):
        with pytest.raises(Unreachable):
            await read_keys(no_proxy, place)
    (tmp_path / "keys.json").write_text("no keys")
    with pytest.raises(Unavailable, match="usable key set"):
        await read_keys(no_proxy, str(tmp_path / "keys.json"))


async def test_a_large_or_hanging_answer_is_given_up(provider, url, monkeypatch):
    provider.answer = (200, b" " * (2 << 20))
    with pytest.raises(Unreachable):
        await read_keys(no_proxy, url)
    monkeypatch.setattr("backends.access.jwks.TIMEOUT_S", 0.05)

    ended = asyncio.Event()

    async def silent(_reader, writer):
        await ended.wait()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        try:
            async with asyncio.timeout(30):  # far more than ours
                with pytest.raises(Unreachable):
                    await read_keys(no_proxy, f"http://127.0.0.1:{port}/certs")
        finally:
            ended.set()


async def test_other_settings_count_at_the_next_token(provider, replica, url):
    await replica.pass_s(0)
    token = provider.token(roles=["boss"])
    assert not replica.tokens.read(token).is_operator
    change(replica.directory, section(url, operator_role="boss"))
    assert replica.tokens.read(token).is_operator  # with the keys that are there
    change(replica.directory, section(url, audience=["billing"]))
    with pytest.raises(Unauthorized, match="audience"):
        replica.tokens.read(token)
    change(replica.directory, section(f"{url}/elsewhere"))
    assert replica.waits_s(token) >= 1  # keys of another place count no more
    change(replica.directory, {**section(url), "later": True})
    assert replica.waits_s(token) == 2.0
    change(replica.directory, None)
    assert replica.tokens.read(token) is None
    await replica.pass_s(1_000)
    assert provider.reads == 1


async def test_keys_that_arrive_after_a_change_of_place_are_thrown_away(provider, replica, url):
    async def read(place):
        change(replica.directory, section(f"{place}/elsewhere"))
        replica.tokens._followed()
        return await read_keys(no_proxy, place)

    replica.tokens._read_keys = read
    await replica.pass_s(0)
    assert replica.waits_s(provider.token()) >= 1


FILE = f"""
principals: {{}}
identity_provider:
  issuer: {ISSUER}
  audience: [{AUDIENCE}]
  jwks: URL
  grants: {{models: ["gpt-*"]}}
"""


async def test_a_process_of_the_graph_follows_the_file(
    provider, url, database, database_url, tmp_path, monkeypatch
):
    """From `access.yaml` over PostgreSQL to a replica, which reads the keys by itself."""
    monkeypatch.setattr("services.access.tokens.RETRY_S", 0.2)
    environment = read_environment(
        {
            "DAARION_CONFIG_DIR": str(tmp_path),
            "DAARION_DATA_DIR": str(tmp_path),
            "DATABASE_URL": database_url,
            "DAARION_INTERNAL_SECRET": "the secret of this graph",
        }
    )
    events, token = RecordedEvents(), provider.token(agents="agent:sofia")
    provider.answer = AWAY
    async with Resources() as resources:
        access = await open_access(environment, events, resources)
        with pytest.raises(Unauthorized):
            access.principal([token])
        (tmp_path / "access.yaml").write_text(FILE.replace("URL", url))
        # Serve carries the file to the application as JSON.
        carried = load_access(tmp_path).model_dump(mode="json", exclude_unset=True)
        contents = contents_of(AccessSettings.model_validate(carried), environment.secret)
        await PostgresPrincipals(database, events).apply(*contents)
        async with asyncio.timeout(60):
            while not events.named("access.keys_not_read"):
                await asyncio.sleep(0.05)
        assert events.named("access.keys_not_read")[0] == {"error": "unavailable"}
        with pytest.raises(Unavailable):
            access.principal([token])
        provider.answer = None
        async with asyncio.timeout(60):
            while True:
                try:
                    found = access.principal([token])
                    break
                except Unavailable:
                    await asyncio.sleep(0.1)
    assert (found.grants.agents, found.grants.models) == (["agent:sofia"], ["gpt-*"])
