"""The time that a body may take, and which body is ended when all places are taken."""

import asyncio

import pytest

from contracts.errors import Overloaded, RequestTimeout
from interfaces.http.base import request_slots
from interfaces.http.base.request_slots import RequestSlot, RequestSlots


class Client:
    """A client with its slot; each part of its body arrives after some seconds of a fake clock."""

    def __init__(self, shared, clock, body_s=request_slots.BODY_S):
        self.clock = clock
        self.parts = asyncio.Queue()
        self.slot = RequestSlot(shared, self.next_part, self.parts.put, body_s)

    async def next_part(self):
        self.waits_until = self.slot.due
        seconds, body = await self.parts.get()
        self.clock.now += seconds
        return {"type": "http.request", "body": body, "more_body": True}

    async def send(self, size, after_s):
        """Sends a part; returns for how long the server would have waited for it."""
        self.parts.put_nowait((after_s, b"x" * size))
        await (self.slot.receive() if self.slot.is_arriving else self.slot.start("POST"))
        if self.slot._first is not None:
            await self.slot.receive()
        return self.waits_until - (self.clock.now - after_s)


class Clock:
    now = 1_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(request_slots, "monotonic", clock := Clock())
    return clock


async def test_a_long_body_has_as_much_time_as_its_pace_earns(clock):
    grace, pace = request_slots.GRACE_S, request_slots.BYTES_PER_S
    client = Client(RequestSlots(1), clock)
    assert await client.send(10, after_s=5) == grace
    assert await client.send(2 * pace, after_s=5) == pytest.approx(
        grace - 5 + 10 / pace
    )  # ten bytes earn no time
    assert await client.send(1 << 20, after_s=5) == pytest.approx(
        grace - 8 + 10 / pace
    )  # two seconds' bytes earn two
    assert await client.send(10, after_s=10) == grace  # a mebibyte earns a pause, but no longer one


async def test_no_pace_earns_more_than_the_whole_time_of_a_body(clock):
    client = Client(RequestSlots(1), clock)
    for _ in range(23):
        await client.send(1 << 20, after_s=5)
    assert await client.send(1 << 20, after_s=4) == request_slots.BODY_S - 23 * 5
    upload = Client(RequestSlots(1), clock, request_slots.UPLOAD_S)
    for _ in range(24):
        await upload.send(1 << 20, after_s=5)
    assert await upload.send(1 << 20, after_s=5) == request_slots.GRACE_S


async def test_time_in_which_a_part_is_worked_on_is_not_the_clients(clock):
    client = Client(RequestSlots(1), clock)
    for _ in range(3):
        await client.send(1, after_s=1)
        clock.now += 100  # the route stores the part
    assert await client.send(1, after_s=1) == pytest.approx(
        request_slots.GRACE_S - 3 + 3 / request_slots.BYTES_PER_S
    )


async def test_the_slowest_body_makes_room_and_a_new_one_is_spared(clock):
    shared = RequestSlots(3)
    clients = [Client(shared, clock) for _ in range(3)]
    for client, size in zip(clients, (30_000, 10_000, 20_000), strict=True):
        await client.send(size, after_s=0)
    waiting = [asyncio.create_task(client.slot.receive()) for client in clients]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await Client(shared, clock).send(1, after_s=0)
    clock.now += request_slots.SPARED_S
    for left in ([True, False, True], [True, False, False]):
        newcomer = Client(shared, clock)
        await newcomer.send(1, after_s=0)
        await asyncio.sleep(0)
        assert [not task.done() for task in waiting] == left
    waiting[0].cancel()
    for task in waiting[1:]:
        with pytest.raises(RequestTimeout, match="the slowest is ended"):
            await task
