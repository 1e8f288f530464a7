"""`usage.llm` on a real NATS: each call at least once, and the ledger never waits."""

import asyncio
import contextlib
import os
import signal
from decimal import Decimal

import nats
import orjson
import pytest

from backends.llm import usage_publisher
from backends.llm.usage_outbox import PostgresUsageOutbox
from backends.llm.usage_publisher import NatsLLMUsage
from backends.nats.link import NatsLink
from contracts.llm.usage import AttemptRecord
from launcher.nats import NatsServer
from services.llm import usage_writer
from services.llm.usage_writer import AWAY_S, UsageAnnouncer
from tests.support.llm.ledger_writer import LedgerOptions, LedgerWriter
from tests.support.llm.usage import usage_record
from tests.support.llm.usage_engine import LlmUsage

QUICK = LedgerOptions(flush_interval_s=0.02, adopt_interval_s=0.2, max_backoff_s=0.2)


@pytest.fixture
async def server(tmp_path):
    async with NatsServer(tmp_path / "nats") as running:
        yield running


@pytest.fixture
async def heard(server):
    """The messages that a billing engine receives: [(id header, body)]."""
    messages = []

    async def hear(message):
        LlmUsage.model_validate_json(message.data)
        messages.append((message.headers["Nats-Msg-Id"], orjson.loads(message.data)))

    connection = await nats.connect(server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1)
    await connection.subscribe("usage.llm", cb=hear)
    yield messages
    await connection.close()


@contextlib.asynccontextmanager
async def writing(database, folder, url, events):
    link = NatsLink(url, events, name="test")
    link.start()
    announcer = UsageAnnouncer(
        PostgresUsageOutbox(database), NatsLLMUsage(link), events, poll_every_s=0.1
    )
    announcer.start()
    writer = LedgerWriter(
        database, folder, events=events, options=QUICK, name="here", announcer=announcer
    )
    await writer.start()
    try:
        yield writer, link
    finally:
        await writer.close(timeout_s=30)
        await announcer.close()
        await link.close()


async def until(condition, timeout_s=60.0):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


def connected(link):
    with contextlib.suppress(Exception):
        return link.client() is not None
    return False


async def noted(database):
    async with database.transaction() as connection:
        row = await (
            await connection.execute("SELECT count(*) AS calls FROM llm_usage_outbox")
        ).fetchone()
    return row["calls"]


def a_call(**changes):
    tries = (
        AttemptRecord(
            provider="openai", physical_model="a", outcome="upstream_unavailable", latency_ms=2.0
        ),
        AttemptRecord(
            provider="backup",
            physical_model="b",
            outcome="ok",
            latency_ms=3.0,
            total_tokens=120,
            cost_usd=Decimal("0.25"),
        ),
    )
    return usage_record(
        **{
            "tries": tries,
            "cost_usd": Decimal("0.25"),
            "credential": "key-1",
            "ttft_ms": 2.5,
            **changes,
        }
    )


async def test_a_settled_call_is_one_message_with_its_attempts(
    database, tmp_path, events, server, heard
):
    async with writing(database, tmp_path / "journal", server.url, events) as (writer, link):
        await until(lambda: connected(link))
        call = a_call()
        writer.record(call)
        await until(lambda: heard)
        ((identifier, body),) = heard
    assert identifier == body["id"] == str(call.id)
    assert (body["agent_id"], body["microdao_id"], body["credential"], body["outcome"]) == (
        "agent:sofia",
        "microdao:7",
        "key-1",
        "ok",
    )
    assert (body["total_tokens"], body["cost_usd"], body["ttft_ms"]) == (120, "0.250000000", 2.5)
    assert [
        (tried["provider"], tried["outcome"], tried["cost_usd"]) for tried in body["attempts"]
    ] == [
        ("openai", "upstream_unavailable", None),
        ("backup", "ok", "0.25"),
    ]


async def test_while_nats_is_away_rows_are_written_and_messages_come_later(
    database, tmp_path, events, server, heard
):
    await server.stop()
    calls = [
        a_call(request_id=f"r-{number}", cost_usd=None if number % 2 else Decimal(1))
        for number in range(40)
    ]
    async with writing(database, tmp_path / "journal", server.url, events) as (writer, _):
        for call in calls:
            writer.record(call)
        await until(lambda: writer.statistics().written == 40 and not writer.statistics().queued)
        assert await noted(database) == 40
        await server.start()
        await until(lambda: len({identifier for identifier, _ in heard}) == 40)
    bodies = {body["id"]: body for _, body in heard}
    assert set(bodies) == {str(call.id) for call in calls}
    first = bodies[str(calls[0].id)]
    assert (first["cost_usd"], first["occurred_at"]) == (
        "1.000000000",
        calls[0].occurred_at.isoformat(),
    )
    assert bodies[str(calls[1].id)]["cost_usd"] is None
    assert [tried["cost_usd"] for tried in first["attempts"]] == [None, "0.250000000"]
    assert await noted(database) == 0
    assert len(events.named("usage.not_announced")) == 1


async def test_a_nats_that_hangs_does_not_hold_up_the_ledger(
    database, tmp_path, events, server, heard
):
    async with writing(database, tmp_path / "journal", server.url, events) as (writer, link):
        await until(lambda: connected(link))
        os.kill(server.pid, signal.SIGSTOP)
        try:
            for number in range(20):
                writer.record(a_call(request_id=f"r-{number}"))
            await until(
                lambda: writer.statistics().written == 20 and not writer.statistics().queued
            )
        finally:
            os.kill(server.pid, signal.SIGCONT)
        await until(lambda: len({identifier for identifier, _ in heard}) == 20)


async def test_another_process_publishes_the_messages_left_in_the_outbox(
    database, tmp_path, events, server, heard
):
    async with writing(database, tmp_path / "one", "nats://127.0.0.1:9", events) as (writer, _):
        writer.record(a_call())
        await until(lambda: writer.statistics().written == 1)
    async with writing(database, tmp_path / "other", server.url, events):
        await until(lambda: heard)


async def test_a_nats_that_hangs_gets_nothing_more_until_it_answers(
    database, tmp_path, events, server, heard
):
    async with writing(database, tmp_path / "journal", server.url, events) as (writer, link):
        await until(lambda: connected(link))
        os.kill(server.pid, signal.SIGSTOP)
        try:
            writer.record(a_call(request_id="first"))
            await until(lambda: events.named("usage.not_announced"))
            sent = link.client().stats["out_msgs"]
            for number in range(1_000):
                writer.record(a_call(request_id=f"r-{number}"))
            await until(
                lambda: writer.statistics().written == 1_001 and not writer.statistics().queued
            )
            await asyncio.sleep(3 * AWAY_S / 2)  # long enough for another attempt
            assert link.client().stats["out_msgs"] == sent
            assert await noted(database) == 1_001
        finally:
            os.kill(server.pid, signal.SIGCONT)
        await until(lambda: len({identifier for identifier, _ in heard}) == 1_001)


async def test_a_client_that_holds_too_much_already_is_given_no_more(
    database, tmp_path, events, server, heard, monkeypatch
):
    monkeypatch.setattr(usage_publisher, "MAX_PENDING_BYTES", -1)
    async with writing(database, tmp_path / "journal", server.url, events) as (writer, link):
        await until(lambda: connected(link))
        writer.record(a_call())
        await until(
            lambda: (
                events.named("usage.not_announced")
                and writer.statistics().written == 1
                and not writer.statistics().queued
            )
        )
        assert (await noted(database), heard, link.client().stats["out_msgs"]) == (1, [], 0)
        monkeypatch.undo()
        await until(lambda: heard)


async def test_messages_older_than_a_week_are_dropped_while_nats_is_away(
    database, tmp_path, events, monkeypatch
):
    monkeypatch.setattr(usage_writer, "PURGE_ROWS", 400)
    async with database.transaction() as connection:
        await connection.execute(
            "INSERT INTO llm_usage_outbox (id, added_at) "
            "SELECT gen_random_uuid(), "
            "now() - make_interval(days => CASE WHEN number <= 1000 THEN 8 ELSE 6 END) "
            "FROM generate_series(1, 1010) AS number"
        )
    async with writing(database, tmp_path / "journal", "nats://127.0.0.1:9", events):
        async with asyncio.timeout(60):
            while await noted(database) != 10:
                await asyncio.sleep(0.05)
    assert [event["calls"] for event in events.named("usage.events_expired")] == [400, 400, 200]
