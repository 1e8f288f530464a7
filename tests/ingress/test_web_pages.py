"""Web pages reach the ingress through a browser: none of their requests may
count as a call."""

import re

import httpx
import pytest

from configs.environment import read_environment
from contracts.errors import ConfigurationError
from contracts.health import Health
from interfaces.http.base.ingress import HEALTH_PATHS, Ingress
from interfaces.http.graph import openapi
from interfaces.http.graph.openapi import build_openapi, documented_routers
from interfaces.http.graph.root import OPEN_PATHS, root_router
from interfaces.http.llm.openai import OPENAI_ERRORS
from interfaces.http.memory import memory_router
from interfaces.http.tools import TOOL_ERRORS, ToolRoutes, tools_router
from tests.support.access import access_control
from tests.support.uvicorn_server import JSON, served

PREFIXES = dict.fromkeys(("llm", "memory", "tools", "agents", "workspace"), "")
FORM = {"content-type": "text/plain;charset=UTF-8"}
HERE = "127.0.0.1:8000"


class Untouched:
    """Use cases that fail when they are called, because no request may reach one."""

    def __getattr__(self, name):
        return self

    def __call__(self, *_, **__):
        return self


@pytest.fixture
def applications(monkeypatch, events):
    """Returns every application by name, with no use case behind it, under the given `access`."""
    monkeypatch.setattr(openapi, "_NOTHING", Untouched())

    def made(access=None):
        routers = documented_routers(PREFIXES)
        return {
            name: Ingress(
                router,
                access or access_control(),
                events,
                max_concurrent=9,
                error_shapes=OPENAI_ERRORS | TOOL_ERRORS,
            )
            for name, (_, router) in routers.items()
            if name in PREFIXES
        }

    return made


def routes_of(application, *methods):
    return [
        (method, re.sub(r"{[^}]*}", "some", route.path))
        for route in application._app.routes
        for method in getattr(route, "methods", ())
        if method in methods and route.path not in HEALTH_PATHS
    ]


def client_of(application, **headers):
    transport = httpx.ASGITransport(application, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url=f"http://{HERE}", headers=headers)


async def test_no_route_takes_a_body_that_a_form_can_send(applications):
    tried = 0
    for name, application in applications().items():
        async with client_of(application) as client:
            for method, path in routes_of(application, "POST", "PUT"):
                for headers in (
                    FORM,
                    {"content-type": "application/x-www-form-urlencoded"},
                    {"content-type": "multipart/form-data"},
                    {},
                ):
                    if path in {"/mcp", "/documents"}:
                        # The MCP server has a router of its own. A document has any type, and no
                        # form sends a PUT: a page's script would ask first.
                        continue
                    url = f"{path}?agent_id=agent:a&microdao_id=microdao:7"
                    answer = await client.request(
                        method, url, content=b'{"agent_id":"agent:a"}', headers=headers
                    )
                    assert answer.status_code == 415, (name, method, path, headers, answer.text)
                    refusal = answer.json()
                    error = refusal["error"]
                    message = error if path == "/call" else error["message"]
                    assert "Content-Type: application/" in message
                    tried += 1
    assert tried > 70


@pytest.mark.parametrize(
    "media_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/vnd.x+json",
    ],
)
async def test_json_under_each_of_its_types_is_read(applications, media_type):
    for name, application in applications().items():
        async with client_of(application) as client:
            for method, path in routes_of(application, "POST", "PUT"):
                if path not in {"/mcp", "/import"}:
                    answer = await client.request(
                        method, path, content=b"{", headers={"content-type": media_type}
                    )
                    assert answer.status_code in {400, 422}, (name, method, path, answer.text)


def test_the_refusals_are_in_the_document():
    document = build_openapi({name: f"/internal/{name}" for name in PREFIXES})
    for path in (
        "/memory/query",
        "/memory/import",
        "/tools/mcp",
        "/tools/call",
        "/llm/v1/embeddings",
    ):
        documented = document["paths"][f"/internal{path}"]["post"]["responses"]
        assert {"403", "408", "415", "421"} <= set(documented), path


async def test_the_refusals_have_the_shapes_of_their_routes(applications):
    every = applications()
    async with client_of(every["llm"]) as client:
        error = (await client.post("/v1/chat/completions", content=b"{}", headers=FORM)).json()[
            "error"
        ]
        assert (error["type"], error["code"]) == ("invalid_request_error", "unsupported_media_type")
        error = (
            await client.post("/v1/embeddings", json={}, headers={"origin": "https://evil.example"})
        ).json()["error"]
        assert error["code"] == "forbidden"
    async with client_of(every["tools"]) as client:
        answer = await client.post("/call", content=b"{}", headers={**FORM, "x-request-id": "mine"})
        assert (answer.status_code, answer.json()["ok"], answer.json()["error_kind"]) == (
            415,
            False,
            "invalid_args",
        )
        assert (answer.json()["retryable"], answer.json()["request_id"]) == (False, "mine")


FOREIGN = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:3000"},
    {"origin": "http://127.0.0.1"},
    {"origin": f"http://{HERE}.evil.example"},
    {"origin": "https://evil.example", "sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
@pytest.mark.parametrize("secret", [None, "s3cret"], ids=["open", "with a secret"])
async def test_no_route_takes_a_request_for_a_page_of_another_origin(applications, headers, secret):
    """Neither those without a body, which a form can send as well, nor those that read."""
    own = {"x-internal-secret": secret} if secret else {}
    for name, application in applications(access_control(secret, secret)).items():
        async with client_of(application, **headers, **own) as client:
            for method, path in routes_of(application, "POST", "PUT", "DELETE", "GET"):
                answer = await client.request(
                    method, path, content=b"{" if method in {"POST", "PUT"} else None
                )
                assert answer.status_code == 403, (name, method, path, answer.text)
                assert answer.json()["error"]["type" if name != "llm" else "retryable"] is not None


async def test_the_own_page_and_programs_may_call(applications):
    for headers in (
        {},
        {"origin": f"http://{HERE}", "sec-fetch-site": "same-origin"},
        {"origin": f"https://{HERE}"},  # the proxy that ends TLS forwards the host
        {"sec-fetch-site": "none", "sec-fetch-mode": "navigate"},
    ):
        async with client_of(applications()["llm"], **headers) as client:
            assert (await client.post("/proxy", content=b"{", headers=JSON)).status_code == 400, (
                headers
            )


async def test_a_listed_host_may_be_another_name_of_the_ingress_or_stand_in_an_origin(applications):
    every = applications(access_control(None, None, {"daarion.example"}))
    async with client_of(every["llm"]) as client:
        for headers in (
            {"host": "daarion.example"},
            {"host": "DAARION.example:8443", "origin": "https://DAARION.example:8443"},
            {"origin": "https://daarion.example", "sec-fetch-site": "cross-site"},
            {"origin": "app://daarion.example"},
        ):
            assert (
                await client.post("/proxy", content=b"{", headers=JSON | headers)
            ).status_code == 400, headers
        for headers in ({"host": "x.daarion.example"}, {"host": "daarion.example.evil.example"}):
            assert (
                await client.post("/proxy", content=b"{", headers=JSON | headers)
            ).status_code == 421, headers


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "10.0.0.7",
        "[::2]:8000",
        "[",
        ":",
    ],
)
async def test_without_a_secret_other_names_in_host_are_refused(applications, host):
    for application in applications().values():
        async with client_of(application) as client:
            for method, path in routes_of(application, "GET", "POST", "PUT", "DELETE"):
                answer = await client.request(
                    method,
                    path,
                    headers={
                        "host": host,
                        "origin": f"http://{host}",
                        "sec-fetch-site": "same-origin",
                    },
                )
                assert answer.status_code == 421, (path, answer.text)
                assert "DAARION_ALLOWED_HOSTS" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("Evil.example:8000", "evil.example"),
        ("a`\xe9\x85 b", "a????b"),
        ("x" * 4_000, "x" * 100),
        ("[::2]:1", "::2"),
    ],
)
async def test_a_refused_host_is_named_in_plain_letters(applications, host, shown):
    async with client_of(applications()["memory"]) as client:
        answer = await client.get("/items", headers={"host": host.encode("latin-1")})
    assert (
        answer.status_code,
        answer.json()["error"]["message"].partition(" is not allowed")[0],
    ) == (421, f"host `{shown}`")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.9.8.7:1", "[::1]", "[::1]:8000"]
)
async def test_every_name_of_loopback_is_accepted(applications, host):
    async with client_of(applications()["llm"]) as client:
        assert (
            await client.post("/proxy", content=b"{", headers={**JSON, "host": host})
        ).status_code == 400


async def test_with_a_secret_any_host_is_accepted(applications):
    """Containers and proxies use names of their own; the secret keeps web pages out."""
    every = applications(access_control("s3cret", None))
    async with client_of(every["llm"], host="graph:8000") as client:
        assert (await client.post("/proxy", json={})).status_code == 401
        assert (
            await client.post(
                "/proxy", content=b"{", headers={**JSON, "x-internal-secret": "s3cret"}
            )
        ).status_code == 400


async def test_public_routes_answer_under_any_host_and_origin(events):
    """Probes may use another name for health, and links may lead to the documentation."""
    router = root_router(lambda: Health(status="ready"), dict)
    root = Ingress(
        router,
        access_control(),
        events,
        max_concurrent=5,
        open_paths=HEALTH_PATHS | OPEN_PATHS,
    )
    memory = Ingress(
        memory_router(Untouched(), lambda: Health(status="ready")),
        access_control(),
        events,
        max_concurrent=5,
    )
    for application, paths in ((root, HEALTH_PATHS | OPEN_PATHS), (memory, HEALTH_PATHS)):
        async with served(application) as url, httpx.AsyncClient(base_url=url) as client:
            for path in paths:
                for headers in (
                    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
                    {"host": "graph.internal"},
                ):
                    assert (await client.get(path, headers=headers)).status_code == 200, path


class Mcp:
    """Stands for the MCP server; a request that gets here passed the checks."""

    async def __call__(self, _scope, _receive, _send):
        raise AssertionError("a page got through")


async def test_the_mcp_server_is_behind_the_same_checks(events):
    router = tools_router(ToolRoutes(Untouched(), lambda: Health(status="ready")), Mcp())
    async with client_of(Ingress(router, access_control(), events, max_concurrent=5)) as client:
        for headers, status in (
            ({"origin": "https://evil.example"}, 403),
            ({"host": "evil.example"}, 421),
        ):
            assert (
                await client.post("/mcp", content=b"{}", headers=JSON | headers)
            ).status_code == status


async def test_a_listed_origin_gets_no_permission_for_json(applications):
    """Without these headers a browser sends no JSON for another page and shows it no answer."""
    async with client_of(
        applications(access_control(None, None, {"daarion.example"}))["llm"],
        origin="https://daarion.example",
    ) as client:
        asked = await client.options("/proxy", headers={"access-control-request-method": "POST"})
        sent = await client.post("/proxy", content=b"{", headers=JSON)
    assert (asked.status_code, sent.status_code) == (405, 400)
    assert not [
        name
        for answer in (asked, sent)
        for name in answer.headers
        if name.startswith("access-control-")
    ]


def test_the_variable_holds_names_alone():
    assert read_environment({}).allowed_hosts == frozenset()
    assert read_environment(
        {"DAARION_ALLOWED_HOSTS": " Daarion.example, graph ,"}
    ).allowed_hosts == {"daarion.example", "graph"}
    for wrong in ("https://daarion.example", "daarion.example:8000", "*", "a b"):
        with pytest.raises(ConfigurationError, match="DAARION_ALLOWED_HOSTS"):
            read_environment({"DAARION_ALLOWED_HOSTS": wrong})
