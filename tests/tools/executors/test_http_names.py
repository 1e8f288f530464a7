"""The addresses that the HTTP executor connects to: pinned, checked, and proved by TLS."""

import asyncio
import socket
import ssl
import subprocess
from ipaddress import ip_address

import pytest

from contracts.tools.api import EgressRule
from executors.http.connections import Connections
from executors.http.executor import HttpToolExecutor
from tests.support.events import RecordedEvents
from tests.support.tools.executions import Secrets, definition, execution
from tests.support.tools.http_executor import SECRET, tool


class Names:
    """A name server that changes its mind."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self, _host: str, _port: int, _family: socket.AddressFamily) -> list[str]:
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


async def with_names(events: RecordedEvents, names: Names, target, ceiling=()):
    executor = HttpToolExecutor(Secrets(), events, connections=Connections(names), ceiling=ceiling)
    try:
        return await executor.execute(execution(target))
    finally:
        await executor.close()


async def test_a_name_is_resolved_once_and_keeps_its_host_header(server, events):
    names = Names(["127.0.0.1"], ["169.254.169.254"])
    target = definition(
        server.url("/ok", "tools.example"),
        egress=[{"host": "tools.example", "cidr": "127.0.0.1/32"}],
    )
    assert (await with_names(events, names, target)).ok
    assert names.asked == 1
    assert server.calls[0].headers["host"] == f"tools.example:{server.port}"


@pytest.mark.parametrize(
    "answer",
    [
        ["169.254.169.254"],
        ["127.0.0.1", "169.254.169.254"],
        ["::ffff:127.0.0.1"],
        ["10.0.0.8"],
        ["127.0.0.1"],
    ],
)
async def test_a_name_that_turns_inward_is_not_connected_to(server, events, answer):
    names = Names(answer)
    target = definition(server.url("/ok", "tools.example"), egress=[{"host": "tools.example"}])
    outcome = await with_names(events, names, target)
    assert outcome.error_kind == "denied"
    assert not any(str(ip_address(text)) in (outcome.error or "") for text in answer)
    assert server.connections == 0


async def test_a_later_look_up_is_checked_as_the_first(server, events, monkeypatch):
    monkeypatch.setattr("executors.http.connections.CAREFUL_KEEPALIVE_S", 0.001)
    names = Names(["127.0.0.1"], ["10.0.0.8"])
    target = definition(
        server.url("/ok", "tools.example"),
        effect="write",
        egress=[{"host": "tools.example", "cidr": "127.0.0.1/32"}],
    )
    connections = Connections(names)
    executor = HttpToolExecutor(Secrets(), events, connections=connections)
    assert (await executor.execute(execution(target))).ok
    for pool in connections._pools.values():
        pool.session.connector.clear_dns_cache()
    await asyncio.sleep(0.05)  # the kept connection, to an address that was checked, is over
    assert (await executor.execute(execution(target))).error_kind == "denied"
    assert server.connections == 1
    await executor.close()


async def test_a_pooled_connection_serves_no_other_policy(server, executor):
    assert (await executor.execute(execution(tool(server, "/ok")))).ok
    closed = definition(server.url("/ok"), egress=[])
    outcome = await executor.execute(execution(closed))
    assert outcome.error_kind == "denied"
    assert len(server.calls) == 1


async def test_the_ceiling_binds_every_tool(server, events):
    executor = HttpToolExecutor(Secrets(), events, ceiling=[EgressRule(cidr="10.0.0.0/8")])
    assert (await executor.execute(execution(tool(server, "/ok")))).error_kind == "denied"
    await executor.close()
    assert server.connections == 0


async def test_a_pinned_address_must_still_prove_the_name(events, tmp_path):
    certificate, key = self_signed(tmp_path, "other.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    seen = []
    async with await asyncio.start_server(
        lambda reader, _writer: seen.append(reader), "127.0.0.1", 0, ssl=context
    ) as tls:
        port = tls.sockets[0].getsockname()[1]
        target = definition(
            f"https://tools.example:{port}/",
            egress=[{"cidr": "127.0.0.0/8"}],
            secrets=[{"name": "crm"}],
        )
        executor = HttpToolExecutor(
            Secrets(crm=SECRET), events, connections=Connections(Names(["127.0.0.1"]))
        )
        outcome = await executor.execute(execution(target))
        await executor.close()
    assert (outcome.error_kind, outcome.retryable, outcome.effect_possible) == (
        "unavailable",
        False,
        False,
    )
    assert "TLS" in (outcome.error or "")
    assert seen == []


def self_signed(folder, name):
    """Returns the paths of a certificate that nobody vouches for, and of its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "1",
    ]
    subprocess.run(
        [*command, "-subj", f"/CN={name}", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
        timeout=20,
    )
    return certificate, key


async def test_names_that_do_not_resolve_are_unavailable(events):
    async def nothing(*_):
        raise socket.gaierror(-2, "Name or service not known")

    outcome = await with_names(
        events, nothing, definition("http://nowhere.example/x", effect="write")
    )
    assert (outcome.error_kind, outcome.retryable, outcome.effect_possible) == (
        "unavailable",
        True,
        False,
    )
