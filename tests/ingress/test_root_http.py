"""The root application's routes, and what HAProxy itself answers, over real HTTP."""

import asyncio
import json
import subprocess
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from uvicorn.protocols.http import auto

from contracts.health import Health
from deployments.graph.request_heads import BoundedHeads
from deployments.graph.serve_defaults import haproxy_binary
from interfaces.http.base.errors import JsonResponse
from interfaces.http.base.ingress import HEALTH_PATHS, Ingress
from interfaces.http.graph.root import OPEN_PATHS, root_router
from launcher.ports import free_ports
from tests.support.access import access_control
from tests.support.uvicorn_server import served

LOOPBACK_SCRIPT = Path(__file__).resolve().parents[2] / "deployments/graph/haproxy-loopback.sh"
# Lines as Ray renders them for a node on which no application runs yet.
RENDERED = """\
defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
    option splice-request
    errorfile 503 /nowhere/500.http
frontend http_frontend
    timeout http-request 1s
    bind 127.0.0.1:{port}
    # Routes endpoint
    acl routes path -i /-/routes
    http-request return status 200 content-type application/json \
string "{{\\"/\\":\\"root\\"}}" if routes
    use_backend dead if {{ path_beg /dead }}
    default_backend default_backend
backend dead
    server s 127.0.0.1:{closed}
backend default_backend
    http-request return status 404 content-type text/plain lf-string \
"Path not found. Ping http://.../-/routes for available routes."
"""


@contextmanager
def haproxy(folder: Path):
    port, closed = free_ports(2)
    file = folder / "haproxy.cfg"
    file.write_text(RENDERED.format(port=port, closed=closed))
    environment = {"PATH": "/usr/bin:/bin", "DAARION_HAPROXY": haproxy_binary()}
    with subprocess.Popen(
        [LOOPBACK_SCRIPT, "-db", "-f", str(file)], env=environment, stderr=subprocess.PIPE
    ) as process:
        try:
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.terminate()


async def answer_of(url, process, **options):
    async with asyncio.timeout(30), httpx.AsyncClient() as client:
        while True:
            assert process.poll() is None, process.stderr.read()
            try:
                return await client.post(url, **options)
            except httpx.ConnectError:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    "path", ["/internal/llm/proxy", "/dead/end"], ids=["no application yet", "no replica"]
)
@pytest.mark.parametrize("given", [None, 'mine"1'], ids=["without an id", "with the caller's id"])
async def test_before_any_application_answers_haproxy_says_to_retry(tmp_path, path, given):
    with haproxy(tmp_path) as (url, process):
        answer = await answer_of(
            f"{url}{path}", process, headers={"x-request-id": given} if given else {}
        )
    assert (answer.status_code, answer.headers["Retry-After"], answer.headers["content-type"]) == (
        503,
        "1",
        "application/json",
    )
    error = json.loads(answer.content)["error"]
    assert (error["type"], error["retryable"]) == ("unavailable", True)
    assert error["request_id"] == given if given else len(error["request_id"]) == 36


@pytest.mark.parametrize("path", ["/-/routes", "/-/ROUTES", "/%2D/routes", "/-/routes?x"])
async def test_haproxy_tells_nobody_which_applications_there_are(tmp_path, path):
    with haproxy(tmp_path) as (url, process):
        answer = await answer_of(f"{url}{path}", process)
    assert "root" not in answer.text
    assert answer.status_code == (503 if "%" in path else 404)
    assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/-/routes", "/%2d/routes", "/-/routes?x"])
async def test_no_server_of_serve_does_so_either(monkeypatch, path):
    async def serve(scope, receive, send):
        await JsonResponse(scope["path"])(scope, receive, send)

    monkeypatch.setattr(auto, "AutoHTTPProtocol", BoundedHeads)
    async with served(serve) as url, httpx.AsyncClient() as client:
        assert (await client.get(f"{url}{path}")).json() == "/-/closed"
        assert (await client.get(f"{url}/-/healthz")).json() == "/-/healthz"


async def test_haproxy_waits_for_a_head_for_a_while(tmp_path):
    with haproxy(tmp_path) as (url, process):
        await answer_of(url, process)
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"POST /internal/llm/proxy HTTP/1.1\r\nHost: loc")
        async with asyncio.timeout(30):
            assert (await reader.read()).split()[1] == b"408"
        writer.close()
    assert (tmp_path / "haproxy.cfg").read_text().count(
        "timeout http-request 10s\n"
    ) == 1  # the test's own frontend replaces Ray's


async def test_an_application_that_is_not_deployed_yet_is_unavailable_and_anything_else_unknown(
    events,
):
    router = root_router(lambda: Health(status="starting"), dict, ["/internal/llm"])
    async with (
        served(Ingress(router, access_control(), events, max_concurrent=5)) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        for path in ("/internal/llm", "/internal/llm/proxy", "/internal/llm/v1/models"):
            for method in ("GET", "POST"):
                answer = await client.request(method, path)
                assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
                assert answer.json()["error"]["retryable"] is True
        assert (await client.get("/internal/llmx")).status_code == 404
        assert (await client.get("/nowhere")).status_code == 404
    assert events.events == []


async def test_a_browser_opens_the_documentation_without_the_secret_and_nothing_else(events):
    router = root_router(
        lambda: Health(status="ready"), lambda: {"openapi": "3.1.0"}, ["/internal/llm"]
    )
    ingress = Ingress(
        router,
        access_control("s3cret", None),
        events,
        max_concurrent=5,
        open_paths=HEALTH_PATHS | OPEN_PATHS,
    )
    async with served(ingress) as url, httpx.AsyncClient(base_url=url) as client:
        for path in (
            "/",
            "/docs",
            "/docs/",
            "/docs/swagger-ui.css",
            "/docs/swagger-ui-bundle.js",
            "/openapi.json",
            "/health",
            "/health/live",
        ):
            assert (await client.get(path)).status_code == 200, path
        for path in ("/nowhere", "/internal/llm/models", "/docs/other"):
            assert (await client.get(path)).status_code == 401, path
