"""An impostor on the port of our NATS receives no credentials and no messages; the real server is
known by its certificate.
"""

import asyncio
import ssl
from contextlib import AsyncExitStack

import nats
import pytest

from backends.nats import link as link_module
from backends.nats.link import NatsLink
from contracts.errors import Unavailable
from interfaces.nats.agents import INVOKE, QUEUE
from interfaces.nats.work_queue import WorkQueue
from launcher.nats import ROUTER, NatsServer, ensure_certificate
from tests.support.events import RecordedEvents
from tests.support.stores.impostor import nats_impostor


@pytest.fixture
async def server(tmp_path):
    async with NatsServer(tmp_path / "ours") as running:
        yield running


async def reached(link, timeout_s=60.0):
    async with asyncio.timeout(timeout_s):
        while True:
            try:
                return link.client()
            except Unavailable:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("shown", ["no certificate", "a certificate of its own"])
async def test_an_impostor_receives_no_credentials(server, tmp_path, shown):
    tls = None
    if shown == "a certificate of its own":
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(*ensure_certificate(tmp_path, "theirs"))
    events = RecordedEvents()
    async with nats_impostor(tls) as impostor:
        link = NatsLink(
            server.url.replace(f":{server.port}", f":{impostor.port}"), events, name="test"
        )
        link.start()
        async with asyncio.timeout(60):
            while not (events.named("nats.away") or events.named("nats.error")):
                await asyncio.sleep(0.05)
        with pytest.raises(Unavailable):
            link.client()
        await link.close()
    assert [data for data in impostor.heard if b"CONNECT" in data or b"pass" in data] == []
    assert tls is None or impostor.heard == []


async def test_a_failed_handshake_does_not_keep_the_link_from_the_next_server(
    server, events, monkeypatch
):
    monkeypatch.setattr(link_module, "ATTEMPT_TIMEOUT_S", 3)
    async with nats_impostor() as impostor, AsyncExitStack() as stack:
        urls = f"{server.url.replace(f':{server.port}', f':{impostor.port}')},{server.url}"
        links = [NatsLink(urls, events, name=f"test {number}") for number in range(5)]
        for link in links:  # the client library shuffles servers: some begin with the impostor
            link.start()
            stack.push_async_callback(link.close)
        for link in links:
            await reached(link)


@pytest.mark.parametrize("ended_by", ["the attempt's bound", "close"])
async def test_a_connection_opened_half_way_is_closed(events, monkeypatch, ended_by):
    """The server accepts and says nothing."""
    accepted, ended = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set()
        await reader.read()
        ended.set()
        writer.close()

    if ended_by != "close":
        monkeypatch.setattr(link_module, "ATTEMPT_TIMEOUT_S", 0.5)
    # The library's own timeout, which closes its connection, comes later.
    monkeypatch.setattr(link_module, "CONNECT_TIMEOUT_S", 60)
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        link = NatsLink(f"nats://127.0.0.1:{port}", events, name="test")
        link.start()
        async with asyncio.timeout(30):
            await accepted.wait()
            if ended_by == "close":
                await link.close()
            await ended.wait()
        await link.close()
    assert events.named("nats.disconnected") == []


async def test_our_own_server_is_reached_again_after_it_came_back(server, events):
    link = NatsLink(server.url, events, name="test")
    link.start()
    client = await reached(link)
    assert client._transport._io_writer.get_extra_info("ssl_object").version() == "TLSv1.3"
    heard = await client.subscribe("x")
    await client.flush()
    await server.stop()
    await server.start()
    async with asyncio.timeout(60):
        while True:
            try:
                await (await reached(link)).publish("x", b"again")
                assert (await heard.next_msg(timeout=1)).data == b"again"
                break
            except (nats.errors.Error, TimeoutError):
                continue
    await link.close()


async def test_a_password_is_wanted_and_the_key_is_private(server, tmp_path):
    with pytest.raises(nats.errors.Error):
        await nats.connect(
            f"nats://daarion:wrong@127.0.0.1:{server.port}",
            allow_reconnect=False,
            max_reconnect_attempts=0,
        )
    files = ensure_certificate(tmp_path / "ours" / "secrets", "nats")
    assert [path.stat().st_mode & 0o777 for path in files] == [0o600, 0o600]
    before = [path.read_text() for path in files]
    await server.stop()
    await server.start()
    assert [path.read_text() for path in files] == before


async def test_the_router_may_publish_invocations_and_nothing_else(server, tmp_path):
    """It logs in with the file that an operator gives it."""
    secret = tmp_path / "ours" / "secrets" / "nats_router"
    assert secret.stat().st_mode & 0o777 == 0o600
    refused, own = [], await nats.connect(server.url)

    async def note(error):
        refused.append(str(error))

    router = await nats.connect(
        f"tls://127.0.0.1:{server.port}",
        user=ROUTER,
        password=secret.read_text(),
        tls=ssl.create_default_context(cafile=tmp_path / "ours" / "secrets" / "nats.crt"),
        tls_handshake_first=True,
        inbox_prefix=b"_INBOX.router",
        error_cb=note,
    )
    await WorkQueue(QUEUE, pytest.fail).prepare(own)
    heard = await own.subscribe("*.>")
    await own.flush()
    acknowledged = await router.jetstream().publish(INVOKE, b"{}")
    assert acknowledged.stream == QUEUE.stream

    elsewhere = ["router.invoke.other", "tool.request", "tool.submit", "usage.llm", "_INBOX.x.y"]
    elsewhere += ["$JS.API.STREAM.PURGE.AGENT_INVOCATIONS", "$JS.API.STREAM.LIST"]
    for subject in elsewhere:
        await router.publish(subject, b"{}")
    for subject in (">", INVOKE, "_INBOX.>", "tool.response"):
        await router.subscribe(subject)
    await router.publish(INVOKE, b"last")
    async with asyncio.timeout(60):
        while len(refused) < len(elsewhere) + 4:
            await asyncio.sleep(0.02)
    assert all("permissions violation" in error for error in refused)
    arrived = []
    async with asyncio.timeout(60):
        while not (arrived and arrived[-1].data == b"last"):
            arrived.append(await heard.next_msg(timeout=60))
    assert {message.subject for message in arrived if message.subject[0] != "_"} == {INVOKE}
    assert (await own.jetstream().stream_info(QUEUE.stream)).state.messages == 2
    await router.close()
    await own.close()
