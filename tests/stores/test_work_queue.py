"""A queue of work over a real NATS server."""

import asyncio
from dataclasses import replace

import nats
import pytest
from nats.js.api import StreamConfig

from common.tasks import end_tasks
from interfaces.nats.work_queue import REASON_HEADER, QueueSettings, WorkQueue, place_of
from launcher.nats import NatsServer

SETTINGS = QueueSettings(
    "WORK",
    "work.do",
    "WORK_PARKED",
    "work.parked",
    "worker",
    max_waiting=100,
    keep_s=3_600,
    ack_wait_s=1,
    max_ack_pending=100,
)


@pytest.fixture
async def client(tmp_path):
    async with NatsServer(tmp_path) as server:
        connection = await nats.connect(server.url)
        yield connection
        await connection.close()


class Worker:
    """Handles messages; those that say `bad` fail after they are taken out of the stream."""

    def __init__(self):
        self.seen, self.failures = [], []
        self.done = asyncio.Event()

    async def room(self):
        pass

    async def handle(self, message):
        if message.data == b"bad":
            await message.term()
            raise ValueError
        self.seen.append((message.data, place_of(message)))
        await message.ack()
        self.done.set()


async def test_a_message_whose_handling_fails_does_not_end_the_fetching(client):
    worker = Worker()
    queue = WorkQueue(SETTINGS, worker.failures.append)
    await queue.prepare(client)
    working = asyncio.create_task(queue.work(client, worker.room, worker.handle))
    await queue.publish(SETTINGS.subject, b"bad", {})
    await queue.publish(SETTINGS.subject, b"good", {})
    async with asyncio.timeout(60):
        await worker.done.wait()
    await end_tasks([working])
    assert [data for data, _ in worker.seen] == [b"good"]
    assert [type(failure) for failure in worker.failures] == [ValueError]


async def test_new_bounds_reach_a_stream_that_exists(client):
    for settings in (SETTINGS, replace(SETTINGS, max_waiting=7, keep_parked_s=3_600.0)):
        await WorkQueue(settings, pytest.fail).prepare(client)
    info = await client.jetstream().stream_info(SETTINGS.stream)
    assert info.config.max_msgs == 7
    parked = await client.jetstream().stream_info(SETTINGS.parked_stream)
    assert parked.config.max_age == 3_600


async def test_a_stream_of_others_that_holds_the_subject_is_used_and_left_as_it_is(client):
    context = client.jetstream()
    await context.add_stream(StreamConfig(name="OTHERS", subjects=["work.do", "other.>"]))
    worker = Worker()
    queue = WorkQueue(replace(SETTINGS, filtered=True), worker.failures.append)
    await queue.prepare(client)
    working = asyncio.create_task(queue.work(client, worker.room, worker.handle))
    await context.publish("other.subject", b"not ours")
    await context.publish(SETTINGS.subject, b"ours")
    async with asyncio.timeout(60):
        await worker.done.wait()
    await end_tasks([working])
    assert [data for data, _ in worker.seen] == [b"ours"]
    assert worker.seen[0][1].endswith("-2")
    assert (await context.stream_info("OTHERS")).config.subjects == ["work.do", "other.>"]


async def test_a_parked_message_keeps_its_text_and_names_the_reason(client):
    worker = Worker()
    queue = WorkQueue(SETTINGS, worker.failures.append)

    async def park(message):
        await queue.park(message, "unreadable", "field: required")
        await message.term()
        worker.done.set()

    await queue.prepare(client)
    working = asyncio.create_task(queue.work(client, worker.room, park))
    await queue.publish(SETTINGS.subject, b"text", {})
    async with asyncio.timeout(60):
        await worker.done.wait()
    await end_tasks([working])
    parked = await client.jetstream().get_msg(SETTINGS.parked_stream, 1)
    assert (parked.data, parked.headers[REASON_HEADER]) == (b"text", "unreadable")
