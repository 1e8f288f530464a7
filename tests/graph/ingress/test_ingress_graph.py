"""Every port of the graph that takes requests, over the network."""

import asyncio
import contextlib

import httpx
import psutil
import pytest
import yaml

from configs.environment import REPOSITORY

pytestmark = [pytest.mark.graph, pytest.mark.timeout(420)]

BODY = (
    b'{"model":"gpt-4.1-mini","messages":[{"role":"user","content":"x"}],'
    b'"metadata":{"agent_id":"agent:a","microdao_id":"microdao:7"}}'
)
PATIENCE_S = 60
APPLICATIONS = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())["applications"]
PREFIXES = {
    each["name"]: each["route_prefix"].rstrip("/") for each in APPLICATIONS if each["route_prefix"]
}


def doors(graph):
    """Every port that speaks HTTP, and the prefix of an application behind it.

    These are the ingress, each ingress replica's own port, and Serve's fallback proxy.
    """
    behind = [
        (process, prefix)
        for name, prefix in PREFIXES.items()
        for process in graph.named(f"ServeReplica:{name}:")
    ]
    found = {graph.port: PREFIXES["llm"]}
    for process, prefix in (
        *behind,
        *((proxy, PREFIXES["llm"]) for proxy in graph.named("ProxyActor")),
    ):
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {
                each.laddr.port: prefix
                for each in process.net_connections("inet")
                if each.status == "LISTEN"
            }
    return {port: prefix for port, prefix in sorted(found.items()) if speaks_http(port)}


def speaks_http(port):
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"http://127.0.0.1:{port}/-/healthz", timeout=5).status_code in {200, 503}
    return False


async def answered(port, sent, until=None):
    """The answer to a part of a request: until the connection ends, or as far as `until`."""
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        try:
            return await (reader.read() if until is None else reader.readuntil(until))
        finally:
            writer.close()


async def test_every_port_bounds_the_time_for_a_request_head(graph):
    ports = doors(graph)
    assert len(ports) >= 8, (
        ports
    )  # replicas of six applications (llm has two), the ingress, the fallback
    answers = await asyncio.gather(
        *(answered(port, b"POST /internal/llm/proxy HTTP/1.1\r\nHost: loc") for port in ports)
    )
    assert [answer for answer in answers if answer and b" 408 " not in answer] == []


async def test_a_body_that_stops_arriving_is_a_408_in_the_envelope(graph):
    head = (
        b"POST /internal/llm/proxy HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    )
    answer = await answered(graph.port, head + b"{", until=b"}}")
    assert answer.split()[1] == b"408"
    assert b'"request_timeout"' in answer


async def test_requests_of_web_pages_are_refused_at_every_port(graph):
    async with httpx.AsyncClient(timeout=60) as client:
        for port, prefix in doors(graph).items():
            for headers, status in (
                ({}, 404),
                ({"origin": "https://evil.example"}, 403),
                ({"host": "evil.example"}, 421),
            ):
                answer = await client.post(
                    f"http://127.0.0.1:{port}{prefix}/no/such/route", headers=headers
                )
                assert (answer.status_code, "request_id" in answer.json()["error"]) == (
                    status,
                    True,
                ), (port, prefix, answer.text)
        answer = await client.post(
            f"{graph.url}/internal/llm/proxy", content=BODY, headers={"content-type": "text/plain"}
        )
        assert (answer.status_code, answer.json()["error"]["type"]) == (
            415,
            "unsupported_media_type",
        )


async def test_no_port_tells_which_applications_there_are(graph):
    """Serve would list them at `/-/routes`, to anybody."""
    async with httpx.AsyncClient(timeout=60) as client:
        for port in doors(graph):
            answer = await client.get(f"http://127.0.0.1:{port}/-/routes")
            assert answer.status_code == 404, (port, answer.text)
            assert not any(prefix in answer.text for prefix in PREFIXES.values() if prefix), port


async def test_what_an_operator_does_is_in_the_audit_trail(graph):
    async with httpx.AsyncClient(base_url=f"{graph.url}/internal/access", timeout=60) as client:
        made = await client.put("/principals/audited", json={}, headers={"x-request-id": "audited"})
        assert made.status_code == 201
        begun = (await client.get("/audit", params={"action": "PUT"})).json()["items"]
        assert [
            (row["principal"], row["object"])
            for row in begun
            if row["request_id"] == "audited" and row["outcome"] == "started"
        ] == [("anonymous", "access/principals/audited: service")]
        assert (await client.delete("/principals/audited")).status_code == 204
        applied = (await client.get("/audit", params={"action": "apply"})).json()["items"]
        assert applied[-1]["object"] == "access.yaml"
