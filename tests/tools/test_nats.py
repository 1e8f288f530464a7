"""Tool calls over a real NATS server: delivered at least once, executed once, bounded."""

from __future__ import annotations

import asyncio
import contextlib
import json

import nats
import pytest

from backends.nats.link import NatsLink
from backends.nats.publisher import NatsEvents, NatsPublisher
from configs.tools import NatsSettings
from contracts.tools.api import Outcome
from contracts.tools.ledger import ToolUsageEvent
from interfaces.nats import tools as tool_nats
from interfaces.nats.senders import Senders
from interfaces.nats.work_queue import REASON_HEADER, WorkQueue
from launcher.nats import NatsServer
from tests.support.access import fixed_access
from tests.support.llm.usage_engine import ToolUsage
from tests.support.otlp import tracing_to
from tests.support.tools.nats import answer_of, listening, request
from tests.support.tools.toolcore import client, replica, tool

PUBLIC = {"nats": {"tool_response": True}}


@pytest.fixture
async def server(tmp_path):
    async with NatsServer(tmp_path) as running:
        yield running


@pytest.fixture
async def outside(server):
    """A caller's connection."""
    connection = await nats.connect(server.url)
    yield connection
    await connection.close()


async def test_a_request_is_answered_to_its_sender_and_on_the_response_subject(
    database_url, server, outside
):
    responses = await outside.subscribe(tool_nats.RESPONSE)
    access = fixed_access(settings=PUBLIC)
    async with replica(database_url, tool()) as here, listening(here, server, access):
        answer = await answer_of(
            await outside.request(
                tool_nats.REQUEST, request(args={"a": "так"}, call_id="n-1"), timeout=60
            )
        )
        assert (answer["ok"], answer["result"], answer["call_id"]) == (
            True,
            {"args": {"a": "так"}},
            "n-1",
        )
        response = await answer_of(await responses.next_msg(timeout=60))
        assert response == answer
        assert (response["tool_id"], response["agent_id"], response["microdao_id"]) == (
            "test.echo",
            "agent:sofia",
            "microdao:7",
        )


async def test_a_call_continues_its_senders_trace_and_its_answer_carries_it(
    database_url, server, outside, collector, monkeypatch
):
    trace, inbox = "4bf92f3577b34da6a3ce929d0e0e4736", outside.new_inbox()
    answers = await outside.subscribe(inbox)
    with tracing_to(collector, monkeypatch):
        async with replica(database_url, tool()) as here, listening(here, server):
            await outside.publish(
                tool_nats.REQUEST,
                request(),
                reply=inbox,
                headers={"TraceParent": f"00-{trace}-00f067aa0ba902b7-01"},
            )
            answer = await answers.next_msg(timeout=60)
    taken, worked = collector.one("process tool.request"), collector.one("process tool.submit")
    call = collector.one("execute_tool test.echo")
    assert (taken.parent, worked.parent, call.parent) == (
        "00f067aa0ba902b7",
        taken.span_id,
        worked.span_id,
    )
    assert {taken.kind, worked.kind} == {"CONSUMER"}
    assert answer.headers["traceparent"] == f"00-{trace}-{worked.span_id}-01"


async def test_refusals_are_answers_too(database_url, server, outside):
    async with replica(database_url, tool(allowed_agents=[])) as here, listening(here, server):
        denied = await answer_of(await outside.request(tool_nats.REQUEST, request(), timeout=60))
        unknown = await answer_of(
            await outside.request(tool_nats.REQUEST, request("test.none"), timeout=60)
        )
    assert (denied["ok"], denied["error_kind"]) == (False, "denied")
    assert unknown["error_kind"] == "not_found"


async def test_one_call_id_is_one_call_over_http_and_nats(database_url, server, outside):
    async with (
        replica(database_url, tool(effect="write")) as here,
        listening(here, server),
        client(here.toolcore, here.events) as http,
    ):
        over_nats = await answer_of(
            await outside.request(tool_nats.REQUEST, request(call_id="same"), timeout=60)
        )
        over_http = (await http.post("/call", content=request(call_id="same"))).json()
        conflict = await answer_of(
            await outside.request(
                tool_nats.REQUEST, request(call_id="same", args={"b": 1}), timeout=60
            )
        )
    assert over_http["replayed"] is True
    assert over_http["result"] == over_nats["result"]
    assert conflict["error_kind"] == "conflict"
    assert len(here.executor.seen) == 1


async def test_queue_group_shares_the_work_between_replicas(database_url, server, outside):
    async with (
        replica(database_url, tool(effect="write")) as one,
        replica(database_url, tool(effect="write")) as two,
        listening(one, server),
        listening(two, server),
    ):
        calls = [
            outside.request(tool_nats.REQUEST, request(call_id=f"q-{number}"), timeout=60)
            for number in range(40)
        ]
        answers = [await answer_of(message) for message in await asyncio.gather(*calls)]
        assert all(answer["ok"] for answer in answers)
        assert len(one.executor.seen) + len(two.executor.seen) == 40


async def test_waiting_requests_survive_the_death_of_a_replica(database_url, server, outside):
    """Submitted without workers, taken by one that never acknowledges, then by another."""
    responses = await outside.subscribe(tool_nats.RESPONSE)
    stuck = asyncio.Event()

    async def hang(_):
        await stuck.wait()

    async with replica(database_url, tool(effect="idempotent", timeout_s=60), script=hang) as dying:
        senders = Senders(fixed_access())
        interface = tool_nats.ToolNats(dying.toolcore.calls, senders, dying.events, NatsSettings())
        await WorkQueue(tool_nats.queue_settings(100), pytest.fail).prepare(outside)
        acknowledged = await outside.jetstream().publish(tool_nats.SUBMIT, request(call_id="left"))
        assert acknowledged.stream == tool_nats.WORK_STREAM
        link = NatsLink(server.url, dying.events, name="dying", on_connect=interface.on_connect)
        link.start()
        async with asyncio.timeout(60):
            while not dying.executor.seen:
                await asyncio.sleep(0.02)
        for task in list(interface._working):
            task.cancel()
        await interface.close()
        await link.close()
    access = fixed_access(settings=PUBLIC)
    async with (
        replica(database_url, tool(effect="idempotent")) as alive,
        listening(alive, server, access),
    ):
        response = await answer_of(await responses.next_msg(timeout=60))
    assert (response["ok"], response["call_id"]) == (True, "left")
    assert alive.executor.seen[0].idempotency_key == dying.executor.seen[0].idempotency_key


@pytest.mark.parametrize(
    "poison",
    [
        b"{",
        b"[]",
        b'{"tool_id": "x"}',
        b"\xff\xfe",
        b'{"tool_id":"t","agent_id":"a","microdao_id":"m","call_id":7}',
    ],
)
async def test_poison_is_parked_and_the_next_request_served(database_url, server, outside, poison):
    async with replica(database_url, tool()) as here, listening(here, server):
        refused = await answer_of(await outside.request(tool_nats.REQUEST, poison, timeout=60))
        assert (refused["ok"], refused["error_kind"]) == (False, "invalid_args")
        good = await answer_of(await outside.request(tool_nats.REQUEST, request(), timeout=60))
        assert good["ok"] is True
        stream = outside.jetstream()
        async with asyncio.timeout(60):
            while (await stream.stream_info(tool_nats.PARKED_STREAM)).state.messages != 1:
                await asyncio.sleep(0.05)
        parked = await stream.get_msg(tool_nats.PARKED_STREAM, 1)
        assert (parked.data, parked.headers[REASON_HEADER]) == (poison, "invalid")
        assert (await stream.stream_info(tool_nats.WORK_STREAM)).state.messages == 0


async def test_a_full_queue_refuses_instead_of_growing(database_url, server, outside):
    release = asyncio.Event()

    async def slow(_):
        await release.wait()
        return Outcome(ok=True, result={})

    async with (
        replica(database_url, tool(effect="write", timeout_s=30), script=slow) as here,
        listening(here, server, max_in_flight=2, max_waiting=5),
    ):
        calls = [
            asyncio.create_task(
                outside.request(tool_nats.REQUEST, request(call_id=f"f-{n}"), timeout=60)
            )
            for n in range(12)
        ]
        refused = []
        async with asyncio.timeout(60):
            while len(refused) < 7:
                await asyncio.sleep(0.05)
                refused = [task for task in calls if task.done()]
        assert {json.loads(task.result().data)["error_kind"] for task in refused} == {"unavailable"}
        assert len(here.executor.seen) == 2
        release.set()
        answers = [json.loads((await task).data) for task in calls if task not in refused]
        assert all(answer["ok"] for answer in answers)
        assert len(answers) == 5


async def test_results_that_nats_cannot_carry_come_by_reference(database_url, server, outside):
    big = tool(inline_result_bytes=8 << 20, max_result_bytes=8 << 20)
    async with (
        replica(database_url, big, script=lambda _: ["x" * 1000] * 2_000) as here,
        listening(here, server),
        client(here.toolcore, here.events) as http,
    ):
        answer = await answer_of(await outside.request(tool_nats.REQUEST, request(), timeout=60))
        assert (answer["ok"], answer["truncated"]) == (True, True)
        page = (
            await http.get(
                f"/results/{answer['result_ref']['id']}",
                params={"microdao_id": "microdao:7", "limit": 3},
            )
        ).json()
        assert page["total"] == 2_000


async def test_usage_events_are_published(database_url, server, outside):
    heard = await outside.subscribe("usage.tool")
    await outside.flush()
    async with replica(database_url, tool(name="Echo")) as here:
        publisher = NatsPublisher(server.url, here.events, name="usage")
        publisher.start()
        here.toolcore._recorder._usage = NatsEvents(publisher)
        await here.call(call_id="u-1")
        sent = (await heard.next_msg(timeout=60)).data
        event, read = ToolUsageEvent.model_validate_json(sent), ToolUsage.model_validate_json(sent)
        await publisher.close()
    assert (event.tool_id, event.call_id, event.ok, event.agent_id) == (
        "test.echo",
        "u-1",
        True,
        "agent:sofia",
    )
    assert (read.tool_name, read.success, read.actor_id) == ("Echo", True, "agent:sofia")


async def test_a_server_that_comes_back_empty_is_prepared_again(database_url, tmp_path_factory):
    first = NatsServer(tmp_path_factory.mktemp("nats"))
    await first.start()
    try:
        async with replica(database_url, tool()) as here, listening(here, first):
            await first.stop()
            await first.start()
            again = await nats.connect(first.url)
            await again.jetstream().delete_stream(tool_nats.WORK_STREAM)
            async with asyncio.timeout(100):
                while True:
                    with contextlib.suppress(nats.errors.Error, TimeoutError):
                        response = json.loads(
                            (await again.request(tool_nats.REQUEST, request(), timeout=1)).data
                        )
                        if response["ok"]:
                            break
                    await asyncio.sleep(0.2)
            await again.close()
    finally:
        await first.stop()
