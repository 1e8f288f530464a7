"""The ingress as the network sees it: every port of the graph that takes requests."""

import asyncio
import contextlib

import httpx
import psutil
import pytest

pytestmark = [pytest.mark.graph, pytest.mark.timeout(420)]

BODY = b'{"model":"gpt-4.1-mini","messages":[{"role":"user","content":"x"}],"metadata":{"agent_id":"agent:a","microdao_id":"microdao:7"}}'
PATIENCE_S = 60
ROUTED = ("llm", "memory", "tools", "agents", "workspace", "root")


def doors(graph):
    """The ingress, each ingress replica's own port, and Serve's fallback proxy; `engines` has no route and serves nobody."""
    found = {graph.port}
    routed = [process for name in ROUTED for process in graph.named(f"ServeReplica:{name}:")]
    for process in (*routed, *graph.named("ProxyActor")):
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {each.laddr.port for each in process.net_connections("inet") if each.status == "LISTEN"}
    return [port for port in sorted(found) if speaks_http(port)]


def speaks_http(port):
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"http://127.0.0.1:{port}/-/healthz", timeout=5).status_code in {200, 503}
    return False


async def answered(port, sent, until=None):
    """What comes back for a part of a request: all until the connection is ended, or as far as `until`."""
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        try:
            return await (reader.read() if until is None else reader.readuntil(until))
        finally:
            writer.close()


async def test_no_door_waits_for_a_head_for_ever(graph):
    ports = doors(graph)
    assert len(ports) >= 8, ports  # replicas of six applications (llm has two), the ingress, the fallback
    answers = await asyncio.gather(*(answered(port, b"POST /internal/llm/proxy HTTP/1.1\r\nHost: loc") for port in ports))
    assert [answer for answer in answers if answer and b" 408 " not in answer] == []


async def test_a_body_that_does_not_come_is_a_408_in_the_envelope(graph):
    head = b"POST /internal/llm/proxy HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    answer = await answered(graph.port, head + b"{", until=b"}}")
    assert answer.split()[1] == b"408"
    assert b'"request_timeout"' in answer


async def test_a_page_is_nobody_at_any_door(graph):
    async with httpx.AsyncClient(timeout=60) as client:
        for port in (graph.port, *[port for port in doors(graph) if port >= 30_000]):
            for headers, status in (({"origin": "https://evil.example"}, 403), ({"host": "evil.example"}, 421)):
                answer = await client.post(f"http://127.0.0.1:{port}/internal/llm/proxy", content=BODY, headers=headers)
                assert answer.status_code in {status, 404}, (port, answer.text)  # another application's replica has no such path
        answer = await client.post(f"{graph.url}/internal/llm/proxy", content=BODY, headers={"content-type": "text/plain"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (415, "unsupported_media_type")
