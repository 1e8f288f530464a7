"""Refused credentials: how they are answered, and that nothing of them is kept."""

import asyncio
import logging
import re
from functools import partial
from types import SimpleNamespace

import httpx
import pytest

from backends.access.jwks import read_keys
from backends.telemetry.event_log import FileEventLog
from configs.proxies import no_proxy
from contracts.access.principals import Grants
from contracts.errors import Unauthorized
from interfaces.http.base.access import AccessControl
from interfaces.http.base.ingress import Ingress
from interfaces.http.base.routing import Router
from interfaces.http.llm.openai import OPENAI_ERRORS
from interfaces.http.tools import TOOL_ERRORS
from services.access.authentication import Authentication
from services.access.tokens import LEEWAY_S, Tokens
from tests.support.access import access_control, fixed_access, served_keys
from tests.support.events import RecordedEvents
from tests.support.identity_provider import IdentityProvider, directory_with, section
from tests.support.uvicorn_server import served

SECRET = "the secret of this graph in this test"
KEY = "dk_the-key-of-the-bot-of-Sofia-in-this-test"
KNOWN = {"principals": {"sofia-bot": Grants()}, "keys": {KEY: "sofia-bot"}}
BURST = 20


@pytest.fixture
async def address():
    async with served_keys(fixed_access(SECRET, None, **KNOWN), None, RecordedEvents()) as url:
        yield url


async def asked(url, *headers):
    """Returns status and body of `GET /me` with these very bytes as its headers."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    lines = [b"GET /internal/access/me HTTP/1.1", b"host: x", b"connection: close", *headers]
    writer.write(b"\r\n".join(lines) + b"\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return int(answer[9:12]), answer


LET_IN = [
    f"Authorization: Bearer {KEY}",
    f"AUTHORIZATION: bEaReR   {KEY}  ",
    f"authorization:Bearer {KEY}\t",
    f"X-API-Key:\t{KEY}",
    f"x-internal-secret: {SECRET}",
    f"x-api-key: {SECRET}",
    f"Authorization: Bearer wrong\r\nAuthorization: Bearer {KEY}",
    f"Authorization: Basic d3Jvbmc=\r\nx-api-key: dk_wrong\r\nX-Internal-Secret: {SECRET}",
]


@pytest.mark.parametrize("headers", LET_IN)
async def test_a_valid_credential_is_let_in_in_each_of_its_spellings(address, headers):
    assert (await asked(address, headers.encode()))[0] == 200


KEPT_OUT = [
    "",
    "Authorization:",
    "Authorization: Bearer",
    "Authorization: Bearer ",
    "x-api-key:",
    "x-internal-secret:",
    f"Authorization: {KEY}",
    f"Authorization: Bearer\t{KEY}",
    f"Authorization: Bearer{KEY}",
    f"Authorization: Basic {KEY}",
    f'Authorization: Bearer "{KEY}"',
    f"Authorization: Bearer {KEY},",
    f"Authorization: Bearer {KEY} {KEY}",
    f"Authorization: Bearer Bearer {KEY}",
    f"Authorization: Bearer {KEY.upper()}",
    f"Authorization: Bearer {KEY[:-1]}",
    f"Authorization: Bearer {KEY}x",
    f"Authorization: Bearer {KEY}\xa0",
    f"Authorization: Bearer \xff\xfe{KEY}",
    f"x-api-key: {KEY}\r\n {SECRET}",
    f"x_api_key: {KEY}",
    f"x-internal-secret: {SECRET.upper()}",
    f"x-internal-secret: {SECRET[:10]}",
    f"Cookie: x-api-key={KEY}",
    f"Proxy-Authorization: Bearer {KEY}",
    f"x-api-key: {'x' * 30_000}",
    "Authorization: Bearer a.b.c",
    "Authorization: Bearer dd_a.b.c",
    "Authorization: Bearer dd_",
    "Authorization: Bearer dd_\xff.\xff.\xff",
    # More than three are too many to look at.
    "x-api-key: 1\r\nx-api-key: 2\r\nx-api-key: 3\r\nx-api-key: " + KEY,
]


@pytest.mark.parametrize("headers", KEPT_OUT)
async def test_everything_else_is_kept_out(address, headers):
    status, answer = await asked(address, *[headers.encode("latin-1")] * bool(headers))
    assert status in {400, 401}, answer
    assert b"HTTP/1.1 400" in answer or b"www-authenticate: Bearer" in answer


async def test_a_query_holds_no_credential(address):
    async with httpx.AsyncClient(base_url=address) as client:
        for name in ("key", "api_key", "access_token", "x-api-key", "authorization"):
            answer = await client.get("/internal/access/me", params={name: KEY})
            assert answer.status_code == 401


@pytest.fixture
def clock(monkeypatch):
    """Stands still unless a test moves it."""
    clock = SimpleNamespace(now=5_000.0)
    module = SimpleNamespace(monotonic=lambda: clock.now)
    monkeypatch.setattr("interfaces.http.base.access.time", module)
    return clock


async def test_after_a_burst_refused_credentials_wait_and_valid_ones_pass(clock):
    """Of all callers together: behind the ingress they have one address."""
    url_of = served_keys(fixed_access(SECRET, None, **KNOWN), None, RecordedEvents())
    async with url_of as url, httpx.AsyncClient(base_url=f"{url}/internal/access") as client:

        async def status(**headers):
            answer = await client.get("/me", headers=headers)
            return answer.status_code, answer.headers.get("retry-after"), answer.json()

        for number in range(BURST):
            assert (await status(Authorization=f"Bearer dk_{number}"))[0] == 401
        for number in range(3):
            refused, wait_s, body = await status(Authorization=f"Bearer dk_{number}x")
            assert (refused, wait_s) == (429, "2")
            assert body["error"]["retryable"]
        assert (await status(Authorization=f"Bearer {KEY}"))[0] == 200
        assert (await status(**{"x-internal-secret": SECRET}))[0] == 200
        assert (await status())[0] == 401  # nothing was presented
        clock.now += 2
        assert [(await status(Authorization="Bearer guess"))[0] for _ in "12"] == [401, 429]
        clock.now += 3_600
        answers = [(await status(Authorization="Bearer guess"))[0] for _ in range(BURST + 5)]
        assert answers == [401] * BURST + [429] * 5


async def test_an_open_graph_counts_what_looks_like_a_key_of_ours(clock):
    access, host = access_control(None, None, **KNOWN), (b"host", b"localhost")
    for _ in range(BURST + 5):
        assert access.check([host, (b"authorization", b"Bearer sk-other")]).name == "anonymous"
    statuses = []
    for _ in range(BURST + 1):
        with pytest.raises(Exception, match=r"this key|too many") as refused:
            access.check([host, (b"authorization", b"Bearer dk_wrong")])
        statuses.append(refused.value.status)
    assert statuses == [401] * BURST + [429]


@pytest.fixture
async def provider_access(tmp_path):
    """Access control with an identity provider."""
    file, provider = tmp_path / "keys.json", IdentityProvider()
    file.write_bytes(provider.key_set())
    directory = directory_with(section(str(file)))
    tokens = Tokens(directory, partial(read_keys, no_proxy))
    await tokens.refresh()
    return AccessControl(Authentication(SECRET, None, directory, tokens)), provider


def expired(provider, **claims):
    return provider.token(exp=1_700_000_000 - LEEWAY_S, **claims)


async def test_an_expired_token_is_always_answered_so_that_its_client_gets_another(
    provider_access, clock
):
    access, provider = provider_access
    token = b"Bearer " + expired(provider)
    for _ in range(BURST + 5):
        with pytest.raises(Unauthorized) as refused:
            access.check([(b"authorization", token)])
        assert (refused.value.status, refused.value.type) == (401, "credential_expired")


async def test_each_shape_of_errors_says_how_to_present_a_credential(events):
    ingress = Ingress(
        Router(),
        access_control(SECRET),
        events,
        max_concurrent=5,
        error_shapes=OPENAI_ERRORS | TOOL_ERRORS,
    )
    async with served(ingress) as url, httpx.AsyncClient(base_url=url) as client:
        for method, path in (("GET", "/x"), ("POST", "/v1/chat/completions"), ("POST", "/call")):
            answer = await client.request(method, path)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer", path
        answer = await client.get("/x", headers={"x-api-key": SECRET})
        assert (answer.status_code, "www-authenticate" in answer.headers) == (404, False)


async def test_nothing_of_a_refused_credential_is_logged_or_answered(
    provider_access, tmp_path, caplog, capfd, monkeypatch
):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr("interfaces.http.base.access.REFUSED_BURST_S", 1e9)
    access, provider = provider_access
    events = FileEventLog(tmp_path / "events.jsonl", "root")
    marked = "MARKEDmarkedMARKED"
    unsigned = provider.token().rpartition(b".")[0].decode()
    credentials = [
        marked,
        f"dk_{marked}",
        f"dd_{marked}",
        f"dd_{unsigned}.{marked}",
        f"{unsigned}.{marked}",
        f"{marked}.{marked}.{marked}",
        provider.token(head={"kid": marked}).decode(),
        provider.token(aud=marked).decode(),
        provider.token(agents=[marked, f"{marked}*"]).decode(),
        provider.token(sub=None, jti=marked).decode(),
        expired(provider, sub=marked).decode(),
        f"{marked}\xff",
    ]
    secrets = re.compile("|".join(map(re.escape, [marked, *credentials])), re.IGNORECASE)
    ingress = Ingress(Router(), access, events, max_concurrent=5, error_shapes=OPENAI_ERRORS)
    answered = 0
    async with served(ingress) as url, httpx.AsyncClient(base_url=url) as client:
        for path in ("/x", "/v1/models"):
            for name, scheme in (
                ("authorization", "Bearer "),
                ("authorization", "Basic "),
                ("x-api-key", ""),
                ("x-internal-secret", ""),
            ):
                for credential in credentials:
                    value = f"{scheme}{credential}".encode("latin-1")
                    answer = await client.get(path, headers=[(name.encode(), value)])
                    assert answer.status_code in {401, 503}
                    assert not secrets.search(answer.text + str(answer.headers.raw))
                    answered += 1
    assert answered == 96
    events.emit("http.defect")
    await asyncio.to_thread(events.close)
    kept = (tmp_path / "events.jsonl").read_text() + caplog.text + "".join(capfd.readouterr())
    assert "http.defect" in kept  # the search looks at the right place
    # The client of this test logs what it sends; ours is the server.
    assert not secrets.search(
        "\n".join(line for line in kept.splitlines() if "httpcore" not in line)
    )
