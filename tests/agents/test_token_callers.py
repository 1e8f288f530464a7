"""Runs that a token of an identity provider began: they do what it allows, and outlive it."""

import asyncio
from functools import partial

import pytest

from backends.access.jwks import read_keys
from configs.proxies import no_proxy
from interfaces.http.base.access import AccessControl
from interfaces.http.base.ingress import Ingress
from services.access.authentication import Authentication
from services.access.tokens import Tokens
from tests.support.agents.platform import SOFIA
from tests.support.agents.scripted_model import Thought
from tests.support.agents.tool_scenes import tools_step
from tests.support.identity_provider import IdentityProvider, directory_with, section

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
async def tokens(here, tmp_path):
    """Agents that demand a credential, and know an identity provider."""
    file = tmp_path / "keys.json"
    file.write_bytes(IdentityProvider().key_set())
    directory = directory_with(section(str(file), grants={"tools": ["notes.write"]}))
    tokens = Tokens(directory, partial(read_keys, no_proxy))
    await tokens.refresh()
    before = here.access.directory.known()
    here.access.directory.take(directory.known())  # a run is the person's while its provider counts
    open_door = here.door.apps["agents"]
    here.door.apps["agents"] = Ingress(
        here.runtime.router(),
        AccessControl(Authentication("the secret", None, directory, tokens)),
        here.events,
        max_concurrent=20,
    )
    yield tokens
    here.door.apps["agents"] = open_door
    here.access.directory.take(before)


async def test_a_run_works_to_its_end_after_the_token_has_expired(here, tokens, monkeypatch):
    channel, expired = await here.channel(), asyncio.Event()
    here.model.script(
        Thought(calls=[("notes.write", {"text": "так"})], until=expired),
        Thought(calls=[("notes.read", {})]),
        Thought("Готово."),
    )
    token = IdentityProvider().token(agents=SOFIA, microdaos=[here.microdao]).decode()
    here.http.headers["authorization"] = f"Bearer {token}"
    try:
        begun = await here.ask(channel, "Запиши", wait="false")
        assert begun["http"] == 202, begun
        async with asyncio.timeout(60):
            while not here.model.bodies:
                await asyncio.sleep(0.02)
        monkeypatch.setattr("services.access.tokens.LEEWAY_S", -3_600)
        tokens._remembered.clear()
        refused = await here.ask(channel, "Ще раз", wait="false")
        assert (refused["http"], refused["error"]["type"]) == (401, "credential_expired")
    finally:
        del here.http.headers["authorization"]
    here.door.apps["agents"]._access = AccessControl(Authentication(None, None, tokens._directory))
    expired.set()
    async with asyncio.timeout(60):
        while (await here.run(begun["run_id"]))["status"] in {"queued", "running"}:
            await asyncio.sleep(0.05)
    assert (await here.run(begun["run_id"]))["status"] == "answered"
    assert "Готово." in await here.replies(channel)
    assert [one.tool.id for one in here.executed] == ["notes.write"]  # which everybody may use
    step = await tools_step(here, begun)
    assert step["calls"][0]["ok"], step
