"""The graph as a whole: start, health, routes, documentation, and the addresses it listens on."""

import contextlib
import os
import socket
from pathlib import Path

import psutil
import pytest

from tests.support.graph import offline

pytestmark = [pytest.mark.graph, pytest.mark.timeout(420, func_only=True)]


def test_callers_are_asked_to_retry_until_the_graph_is_ready(graph):
    answers = list(graph.while_starting)
    assert {answer.status_code for answer in answers} <= {200, 503}, [
        answer.text for answer in answers
    ]
    refused = [answer for answer in answers if answer.status_code == 503]
    assert refused
    for answer in refused:
        error = answer.json()["error"]
        assert (error["type"], error["retryable"], bool(error["request_id"])) == (
            "unavailable",
            True,
            True,
        ), answer.text
        assert int(answer.headers["Retry-After"]) >= 1


async def test_health_names_every_dependency(client):
    health = (await client.get("/health")).json()
    assert health["status"] == "ready"
    assert {"database", "nats", "llm", "llm.engine", "llm.limits", "llm.database"} <= set(
        health["checks"]
    )
    assert all(check["age_s"] < 60 for check in health["checks"].values())
    assert (await client.get("/health/live")).json() == {"status": "alive"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/internal/llm/nowhere", 404),
        ("GET", "/internal/llm/proxy", 405),
    ],
)
async def test_unknown_routes_answer_in_the_envelope(client, method, path, status):
    response = await client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["request_id"] == response.headers["x-request-id"]


@pytest.mark.parametrize(
    "path", ["/internal/llm/models/", "/health/", "/internal/llm/health/", "/docs/"]
)
async def test_a_trailing_slash_is_no_redirect(client, path):
    assert (await client.get(path)).status_code == 200


async def test_the_documentation_is_complete_and_offline(client):
    document = (await client.get("/openapi.json")).json()
    assert {
        "/internal/llm/proxy",
        "/internal/llm/stream",
        "/internal/llm/models",
        "/internal/llm/usage",
        "/health",
    } <= set(document["paths"])
    page = (await client.get("/docs")).text
    assert "http://" not in page
    assert "https://" not in page
    assert len((await client.get("/docs/swagger-ui-bundle.js")).content) > 100_000


def test_everything_listens_on_loopback_only(graph):
    listening = set()
    for process in graph.processes():
        with contextlib.suppress(
            psutil.NoSuchProcess
        ):  # a process that ended meanwhile listens nowhere
            found = [
                connection.laddr
                for connection in process.net_connections("inet")
                if connection.status == "LISTEN"
            ]
            listening |= {(address.ip.removeprefix("::ffff:"), address.port) for address in found}
    assert ("127.0.0.1", graph.port) in listening
    assert {address for address in listening if address[0] not in {"127.0.0.1", "::1"}} == set()


def test_the_suite_ran_without_a_network(graph):
    """`tests.support.graph.offline` runs the suite, so every test shows that loopback is enough."""
    if os.environ.get(offline.VARIABLE) != "1":
        pytest.skip(
            "this host allows no network namespace, "
            "or pytest was not started through tests.support.graph.offline"
        )
    assert [name for _, name in socket.if_nameindex()] == ["lo"]
    routes = Path("/proc/self/net/route").read_text().splitlines()[1:]
    assert routes == []
    assert graph.processes()
