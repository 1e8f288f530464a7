"""Servers that are silent, slow, endless or invalid: a typed result in time, nothing survives."""

import asyncio
import contextlib
import threading
import tracemalloc
from collections.abc import AsyncIterator

import psutil
import pytest

from executors.http.connections import Connections
from executors.http.executor import HttpToolExecutor
from tests.support.events import RecordedEvents
from tests.support.llm.upstream.sockets import hanging_port
from tests.support.tools.executions import Secrets, definition, execution
from tests.support.tools.server import ToolServer

LOOPBACK = [{"cidr": "127.0.0.0/8"}]
SECRET = "tok-9f8e7d6c5b4a"
TIMEOUT_S = 0.6
LIMIT = 64 << 10


def open_descriptors() -> int:
    return psutil.Process().num_fds()


@contextlib.asynccontextmanager
async def nothing_survives(
    server: ToolServer, events: RecordedEvents
) -> AsyncIterator[HttpToolExecutor]:
    """Checks that the block leaves no connection, descriptor, task or secret in the executor."""
    executor = HttpToolExecutor(Secrets(crm=SECRET), events)
    await executor.execute(call(server, "/ok"))
    await asyncio.sleep(0.05)
    descriptors, tasks = open_descriptors(), len(asyncio.all_tasks())
    children = psutil.Process().children()
    yield executor
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(30):
            while (
                server.open_connections > 1
                or open_descriptors() > descriptors
                or len(asyncio.all_tasks()) > tasks
            ):
                await asyncio.sleep(0.02)
    assert server.open_connections <= 1  # the kept one
    assert open_descriptors() <= descriptors
    assert len(asyncio.all_tasks()) <= tasks
    assert psutil.Process().children() == children
    assert SECRET not in repr(events.events)
    await executor.close()
    await server.wait_closed()


def call(server: ToolServer, path: str, **changes):
    secrets = [{"name": "crm"}]
    tool = definition(
        server.url(path),
        egress=LOOPBACK,
        secrets=secrets,
        max_result_bytes=LIMIT,
        **{"timeout_s": 20, **changes},
    )
    return execution(tool)


@pytest.mark.parametrize("effect", ["read", "write"])
@pytest.mark.parametrize("path", ["/silent", "/drip", "/drip-headers", "/endless-continue"])
async def test_slow_servers_end_at_the_deadline(server, events, path, effect):
    async with nothing_survives(server, events) as executor:
        started = asyncio.get_running_loop().time()
        outcome = await executor.execute(call(server, path, effect=effect, timeout_s=TIMEOUT_S))
        assert asyncio.get_running_loop().time() - started < TIMEOUT_S + 20
        assert (outcome.error_kind, outcome.retryable) == ("timeout", True)
        assert outcome.effect_possible is (effect == "write")


async def test_a_connection_that_is_never_accepted_ends_at_the_deadline(server, events):
    with hanging_port() as port:
        async with nothing_survives(server, events) as executor:
            tool = definition(
                f"http://127.0.0.1:{port}/", egress=LOOPBACK, effect="write", timeout_s=TIMEOUT_S
            )
            outcome = await executor.execute(execution(tool))
            assert (outcome.error_kind, outcome.effect_possible) == ("timeout", False)


@pytest.mark.parametrize("path", ["/gigabyte", "/announced-gigabyte", "/bomb", "/second-bomb"])
async def test_oversized_answers_are_cut_off_while_they_stream(server, events, path):
    async with nothing_survives(server, events) as executor:
        tracemalloc.start()
        outcome = await executor.execute(call(server, path))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (outcome.error_kind, outcome.retryable) == ("too_large", False)
        assert str(LIMIT) in (outcome.error or "")
    assert peak < 8 << 20
    assert server.bytes_sent < 16 << 20


async def test_endless_headers_are_refused(server, events):
    async with nothing_survives(server, events) as executor:
        outcome = await executor.execute(call(server, "/endless-headers"))
        assert outcome.error_kind == "upstream"
    assert server.bytes_sent < 64 << 20


@pytest.mark.parametrize(
    "path",
    [
        "/invalid-json",
        "/nan",
        "/latin1",
        "/empty",
        "/deep",
        "/html",
        "/brotli",
        "/broken-gzip",
        "/gzip-and-more",
        "/empty-members",
    ],
)
@pytest.mark.parametrize("effect", ["read", "write"])
async def test_answers_that_are_no_json_are_typed(server, events, path, effect):
    async with nothing_survives(server, events) as executor:
        outcome = await executor.execute(call(server, path, effect=effect))
        expected = "too_large" if path == "/deep" else "invalid_result"
        assert (outcome.error_kind, outcome.retryable, outcome.attempts) == (expected, False, 1)
        assert outcome.effect_possible is (effect == "write")


@pytest.mark.parametrize("path", ["/cut", "/nonsense", "/hang-up"])
async def test_broken_exchanges_are_typed(server, events, path):
    async with nothing_survives(server, events) as executor:
        outcome = await executor.execute(call(server, path, effect="write"))
        assert (outcome.error_kind, outcome.effect_possible, outcome.attempts) == (
            "upstream",
            True,
            1,
        )


async def test_compressed_answers_are_decoded(server, events):
    async with nothing_survives(server, events) as executor:
        assert (await executor.execute(call(server, "/gzip"))).result == [1]
        assert (await executor.execute(call(server, "/gzip-members"))).result == [1, 2]


async def test_a_caller_that_leaves_closes_the_connection(server, events):
    async with nothing_survives(server, events) as executor:
        task = asyncio.create_task(executor.execute(call(server, "/silent", effect="write")))
        while len(server.calls) < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize(
    "target",
    ["http://user:pw@127.0.0.1:{port}/ok", "http://2130706433:{port}/ok",
     "http://0x7f.1:{port}/ok", "http://[::ffff:127.0.0.1]:{port}/ok",
     "http://[::ffff:7f00:1]:{port}/ok", "http://0177.0.0.1:{port}/ok",
     "http://127.1:{port}/ok", "http://169.254.169.254/latest/meta-data"],
)  # fmt: skip
async def test_disguised_targets_are_denied_without_a_packet(server, events, target):
    async with nothing_survives(server, events) as executor:
        before = server.connections
        tool = definition(
            target.format(port=server.port), egress=[{"cidr": "0.0.0.0/0"}, {"cidr": "::/0"}]
        )
        outcome = await executor.execute(execution(tool))
        assert (outcome.error_kind, outcome.attempts, outcome.effect_possible) == (
            "denied",
            0,
            False,
        )
        assert server.connections == before


async def test_a_hanging_name_server_takes_no_thread_of_others(events):
    release = threading.Event()

    async def hanging(*_):
        await asyncio.get_running_loop().run_in_executor(connections._threads, release.wait, 60)
        return ["127.0.0.1"]

    connections = Connections(hanging)
    executor = HttpToolExecutor(Secrets(), events, connections=connections)
    calls = [
        executor.execute(
            execution(definition("http://slow.example/", timeout_s=0.3), call_id=f"c-{n}")
        )
        for n in range(20)
    ]
    outcomes = await asyncio.gather(*calls)
    assert {outcome.error_kind for outcome in outcomes} == {"timeout"}
    assert await asyncio.wait_for(asyncio.to_thread(lambda: 1), 30) == 1
    release.set()
    await executor.close()
