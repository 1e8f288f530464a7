"""Forward proxies: a provider and the embedding endpoint behind TLS, called through a real CONNECT
proxy.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from common.http.client import tls_context
from configs.engines.embedder import RemoteEmbedderSettings
from configs.environment import read_environment
from configs.llm.config import ProviderSettings
from contracts import errors
from contracts.deadline import Deadline
from contracts.errors import ConfigurationError
from providers.embeddings import OpenAIEmbedder
from providers.openai_compatible import OpenAICompatibleProvider
from providers.registry import ProviderResources
from tests.support.llm.forward_proxy import Tap, forward_proxy, server_certificate, tap
from tests.support.llm.openai_calls import ANSWER, BOTH, FAST, KEY, Outcome, assert_leaf, call
from tests.support.llm.proxy import NoEngine
from tests.support.llm.upstream import ScriptedUpstream
from tests.support.llm.upstream.sockets import refused_port
from tests.support.memory.embeddings_server import DIMENSION, EmbeddingsServer

HOST = "provider.test"


@dataclass
class Setting:
    """The TLS front of an upstream, and the way to the proxy."""

    front: Tap
    proxy: Tap

    @property
    def base_url(self) -> str:
        return f"https://{HOST}:{self.front.port}/v1"

    @property
    def proxy_url(self) -> str:
        return f"http://127.0.0.1:{self.proxy.port}"


@contextlib.asynccontextmanager
async def behind_tls(
    port: int, folder: Path, monkeypatch: pytest.MonkeyPatch, auth: str | None = None
) -> AsyncIterator[Setting]:
    authority, context = server_certificate(folder, f"DNS:{HOST}")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    tls_context.cache_clear()
    async with (
        forward_proxy(folder, auth=auth) as proxy_port,
        tap(port, context) as front,
        tap(proxy_port) as proxy,
    ):
        yield Setting(front, proxy)
    tls_context.cache_clear()


@pytest.fixture
async def setting(
    upstream: ScriptedUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Setting]:
    async with behind_tls(upstream.port, tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
async def guarded(
    upstream: ScriptedUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Setting]:
    async with behind_tls(upstream.port, tmp_path, monkeypatch, auth="user:p@ss word") as made:
        yield made


@contextlib.asynccontextmanager
async def provider(
    base_url: str, variables: dict[str, str], **settings: object
) -> AsyncIterator[OpenAICompatibleProvider]:
    environment = read_environment({"UPSTREAM_KEY": KEY, **variables})
    made = OpenAICompatibleProvider(
        "openai",
        ProviderSettings(base_url=base_url, api_key_env="UPSTREAM_KEY", **settings),
        ProviderResources(environment.secret, NoEngine(), proxy_for=environment.proxy_for),
    )
    yield made
    await made.close()


def assert_through_the_proxy(setting: Setting, outcome: Outcome) -> None:
    assert (outcome.error, outcome.text) == (None, ANSWER)
    assert setting.proxy.sent.startswith(f"CONNECT {HOST}:{setting.front.port} HTTP/1.1".encode())
    assert KEY.encode() not in setting.proxy.sent
    assert b"daarion" not in setting.proxy.sent, "nothing of the request"
    assert f"authorization: bearer {KEY}".lower().encode() in setting.front.sent.lower()


@BOTH
async def test_the_configured_proxy_is_used_and_sees_no_key(setting, stream):
    async with provider(setting.base_url, {}, proxy=setting.proxy_url) as made:
        for _ in range(3):
            assert_through_the_proxy(setting, await call(made, stream=stream))
        assert setting.proxy.opened == 1, "the tunnel is reused"


@BOTH
@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
async def test_the_environments_proxy_is_used(setting, stream, name):
    async with provider(setting.base_url, {name: setting.proxy_url}) as made:
        assert_through_the_proxy(setting, await call(made, stream=stream))


async def test_a_configured_proxy_wins_over_the_environment(setting):
    variables = {"HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "*"}
    async with provider(setting.base_url, variables, proxy=setting.proxy_url) as made:
        assert_through_the_proxy(setting, await call(made, stream=False))


@pytest.mark.parametrize("hosts", ["*", HOST, ".test", "other.example, test"])
async def test_no_proxy_connects_directly(setting, hosts):
    variables = {"HTTPS_PROXY": setting.proxy_url, "NO_PROXY": hosts}
    async with provider(setting.base_url, variables) as made:
        # The name is known to the proxy alone, so a direct connection fails.
        outcome = await call(made, stream=False)
        assert_leaf(outcome.error, errors.UpstreamUnavailable)
        assert setting.proxy.opened == 0


@pytest.mark.parametrize(
    ("url", "entry", "exempt"),
    [
        ("https://10.1.2.3/v1", "10.0.0.0/8", True),
        ("https://11.1.2.3/v1", "10.0.0.0/8", False),
        ("https://10.1.2.3/v1", "10.1.2.3", True),
        ("https://[fd00::1]/v1", "fd00::1", True),
        ("https://[fd00::1]:8443/v1", "fd00:0::1", True),
        ("https://[fd00::1]:8443/v1", "[fd00::1]", True),
        ("https://[fd00::1]:8443/v1", "[fd00::1]:8443", True),
        ("https://[fd00::1]:8443/v1", "[fd00::1]:8444", False),
        ("https://[fd00::1]/v1", "fd00::/8", True),
        ("https://[fe00::1]/v1", "fd00::/8", False),
        ("https://[fd00::1]/v1", "10.0.0.0/8", False),
        ("https://ten.example/v1", "10.0.0.0/8", False),
    ],
)
@pytest.mark.parametrize("entries", ["{}", "other.example, {}"])
def test_no_proxy_takes_addresses_and_networks(url, entry, exempt, entries):
    proxy = "http://proxy.example:3128"
    environment = read_environment({"HTTPS_PROXY": proxy, "NO_PROXY": entries.format(entry)})
    assert environment.proxy_for(url) == (None if exempt else proxy)


async def test_loopback_is_never_proxied_by_the_environment(upstream):
    everywhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    async with provider(upstream.base_url, everywhere) as made:
        assert (await call(made, stream=False)).text == ANSWER


@BOTH
async def test_credentials_come_from_a_variable(guarded, stream):
    async with provider(
        guarded.base_url,
        {"PROXY_LOGIN": "user:p@ss word"},
        proxy=guarded.proxy_url,
        proxy_auth_env="PROXY_LOGIN",
    ) as made:
        assert_through_the_proxy(guarded, await call(made, stream=stream))
    assert b"proxy-authorization" not in guarded.front.sent.lower()


async def test_credentials_stand_in_the_environments_url(guarded):
    url = guarded.proxy_url.replace("http://", "http://user:p%40ss%20word@")
    async with provider(guarded.base_url, {"HTTPS_PROXY": url}) as made:
        assert_through_the_proxy(guarded, await call(made, stream=False))


@BOTH
async def test_a_refusal_by_the_forward_proxy_names_the_proxy(guarded, upstream, stream):
    async with provider(guarded.base_url, {}, proxy=guarded.proxy_url) as made:
        outcome = await call(made, stream=stream)
        assert_leaf(outcome.error, errors.UpstreamMisconfigured, upstream)
        assert "the forward proxy refused to connect (status 407)" in outcome.error.message
        assert upstream.total == 0


@BOTH
@pytest.mark.parametrize("login", ["user:p@ss word", "user:wrong"])
async def test_plain_http_goes_through_the_proxy_too(guarded, upstream, stream, login):
    url, variables = f"http://{HOST}:{upstream.port}/v1", {"LOGIN": login}
    settings = {"proxy": guarded.proxy_url, "proxy_auth_env": "LOGIN", "insecure": True}
    async with provider(url, variables, **settings) as made:
        outcome = await call(made, stream=stream)
        assert guarded.proxy.opened == 1
        if login.endswith("wrong"):
            assert_leaf(outcome.error, errors.UpstreamMisconfigured, upstream)
            assert upstream.total == 0
        else:
            assert (outcome.error, outcome.text) == (None, ANSWER)
            assert "proxy-authorization" not in upstream.requests[0].headers


@BOTH
async def test_an_unreachable_forward_proxy_is_named(upstream, stream):
    with refused_port() as port:
        proxy = f"http://127.0.0.1:{port}"
        async with provider("https://provider.test/v1", {}, proxy=proxy) as made:
            outcome = await call(made, stream=stream, timeouts=FAST)
            assert_leaf(outcome.error, errors.UpstreamUnavailable)
            assert "through the forward proxy" in outcome.error.message


@pytest.mark.parametrize(
    ("variables", "settings", "reason"),
    [
        *(
            ({name: f"{scheme}secret@10.0.0.1:{port}"}, {}, f"{name} must be http://")
            for name in ("HTTPS_PROXY", "https_proxy")
            for scheme, port in (
                ("socks5://", "1080"),
                ("https://", "443"),
                ("http://", "99999"),
                ("", "0"),
                ("", "x"),
            )
        ),
        ({}, {"proxy": "http://p:1", "proxy_auth_env": "LOGIN"}, "LOGIN is not set"),
        (
            {"LOGIN": "secret"},
            {"proxy": "http://p:1", "proxy_auth_env": "LOGIN"},
            "LOGIN is not set",
        ),
    ],
)
async def test_a_proxy_that_cannot_be_used_makes_the_provider_unavailable(
    variables, settings, reason
):
    async with provider("https://provider.test/v1", variables, **settings) as made:
        assert reason in made.unavailable_reason()
        if "must be" in reason:
            assert re.search("http:// proxy.*`proxy:`.*NO_PROXY", made.unavailable_reason())
        assert "secret" not in made.unavailable_reason()


@pytest.mark.parametrize(
    "settings",
    [
        {"proxy": "https://p:1"},
        {"proxy": "socks5://p:1"},
        {"proxy": "p:1"},
        {"proxy": "http://user:secret@p:1"},
        {"proxy": "http://p:1/path"},
        {"proxy_auth_env": "LOGIN"},
        {"proxy": "http://p:1", "proxy_auth_env": "DAARION_INTERNAL_SECRET"},
    ],
)
def test_settings_that_name_no_proxy_are_refused(settings):
    with pytest.raises(ValueError, match="proxy"):
        ProviderSettings(base_url="https://x/v1", **settings)


# --- the embedding endpoint ----------------------------------------------------------------------


def embedder_of(
    base_url: str, secret: Callable[[str], str | None], proxy_for=None, **settings: object
) -> OpenAIEmbedder:
    values = {
        "type": "openai_compatible", "base_url": base_url, "model": "m", "served_name": "m",
        "version": "m@1", "dimension": DIMENSION, "api_key_env": "EMBEDDINGS_KEY", **settings,
    }  # fmt: skip
    return OpenAIEmbedder(
        RemoteEmbedderSettings.model_validate(values),
        secret,
        proxy_for or (lambda _url: None),
    )


async def test_embeddings_go_through_the_proxy(tmp_path, monkeypatch):
    async with (
        EmbeddingsServer() as server,
        behind_tls(
            int(server.url.split(":")[2].split("/")[0]), tmp_path, monkeypatch, "u:p"
        ) as way,
    ):
        keys = {"EMBEDDINGS_KEY": KEY, "LOGIN": "u:p"}
        base_url = f"https://{HOST}:{way.front.port}/{server.url.split('/', 3)[3]}"
        configured = embedder_of(base_url, keys.get, proxy=way.proxy_url, proxy_auth_env="LOGIN")
        environment = read_environment(
            {"HTTPS_PROXY": way.proxy_url.replace("//", "//u:p@"), **keys}
        )
        inherited = embedder_of(base_url, environment.secret, environment.proxy_for)
        for embedder in (configured, inherited):
            await embedder.embed(["text"], "query", tenant="t", deadline=Deadline.after(20))
            assert server.headers["Authorization"] == f"Bearer {KEY}"
            await embedder.close()
        assert way.proxy.opened == 2
        assert KEY.encode() not in way.proxy.sent
        refused = embedder_of(base_url, keys.get, proxy=way.proxy_url)
        with pytest.raises(errors.UpstreamMisconfigured, match=r"forward proxy.*407"):
            await refused.embed(["text"], "query", tenant="t", deadline=Deadline.after(20))
        await refused.close()


def test_a_missing_proxy_login_of_the_embedder_is_reported_at_start():
    with pytest.raises(ConfigurationError, match="LOGIN is not set"):
        embedder_of(
            "https://x/v1", {"EMBEDDINGS_KEY": KEY}.get, proxy="http://p:1", proxy_auth_env="LOGIN"
        )
