"""The limit authority over a real ledger.

Money that was spent before it began counts; until that is known, nothing is granted.
"""

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import nats
import orjson
import pytest

from backends.postgres.migrate import migrate
from configs.llm.limits import LimitSettings
from contracts.errors import LimitsUnavailable, RateLimited
from contracts.llm.limits import NANO_PER_USD, Caller, Estimate, Spent
from deployments.llm.limit_authority import LimitAuthority
from launcher.nats import NatsServer
from launcher.postgres import PostgresServer
from services.llm.limits.limiter import LeasedLimiter
from tests.support.events import RecordedEvents
from tests.support.llm.ledger_writer import LedgerWriter
from tests.support.llm.usage import usage_record

SOFIA = Caller("agent:sofia", "microdao:7", "key-1")
DOLLAR = Estimate(10, NANO_PER_USD)


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """Points the authority at a database."""

    def point(url):
        monkeypatch.setenv("DATABASE_URL", url)
        monkeypatch.setenv("DAARION_DATA_DIR", str(tmp_path))

    return point


async def spend(database, folder, dollars, *, recorder, **fields):
    """Writes a call that cost so much, now."""
    writer = LedgerWriter(database, folder, events=RecordedEvents(), name=recorder)
    await writer.start()
    writer.record(
        usage_record(
            cost_usd=Decimal(dollars),
            credential="key-1",
            **{"occurred_at": datetime.now(UTC), **fields},
        )
    )
    await writer.close(timeout_s=30)


async def admitted(limiter):
    """Returns how many calls of a dollar are admitted; waits while the authority learns."""
    reservations = []
    async with asyncio.timeout(60):
        while True:
            try:
                reservations.append(await limiter.reserve(SOFIA, DOLLAR))
            except RateLimited as error:
                return reservations, error
            except LimitsUnavailable:
                await asyncio.sleep(0.1)


@pytest.mark.parametrize("kind", ["agent", "microdao", "credential"])
async def test_money_that_others_spent_before_counts_and_a_replicas_own_counts_once(
    database, database_url, tmp_path, settings, kind
):
    settings(database_url)
    await spend(database, tmp_path / "a", 3, recorder="dead")
    rates = LimitSettings.model_validate({"agent": {}, kind: {"usd_per_month": 10}})
    limiter = LeasedLimiter(LimitAuthority(), rates.of, RecordedEvents(), replica="living")
    reservations, refusal = await admitted(limiter)
    assert len(reservations) == 7
    assert (refusal.details["limit"], refusal.details["left"]) == (f"{kind}.usd_per_month", 0.0)
    for reservation in reservations[:4]:
        reservation.settle(Spent(tokens=1, nano_usd=NANO_PER_USD // 2))
    assert len((await admitted(limiter))[0]) == 2
    await limiter.close()


async def test_a_living_replicas_rows_are_not_counted_twice_by_the_next_authority(
    database, database_url, tmp_path, settings
):
    settings(database_url)
    rates = LimitSettings.model_validate({"agent": {"usd_per_day": 10}})
    limiter = LeasedLimiter(LimitAuthority(), rates.of, RecordedEvents(), replica="living")
    async with asyncio.timeout(60):
        for _ in range(4):
            while True:
                try:
                    (await limiter.reserve(SOFIA, DOLLAR)).settle(Spent(nano_usd=NANO_PER_USD))
                    break
                except LimitsUnavailable:
                    await asyncio.sleep(0.1)
    await spend(database, tmp_path / "a", 4, recorder="living")
    limiter._authority = LimitAuthority()
    await asyncio.sleep(2)  # what it holds of the old authority is over
    reservations, _ = await admitted(limiter)
    assert len(reservations) == 6
    await limiter.close()


async def test_rows_of_a_clock_that_ran_ahead_count_when_their_time_comes(
    database, database_url, tmp_path, settings, monkeypatch
):
    settings(database_url)
    later = datetime.now(UTC) + timedelta(days=40)
    await spend(database, tmp_path / "a", 3, recorder="dead")
    await spend(database, tmp_path / "b", 6, recorder="ahead", occurred_at=later)
    rates = LimitSettings.model_validate({"agent": {"usd_per_month": 10}})
    limiter = LeasedLimiter(LimitAuthority(), rates.of, RecordedEvents(), replica="living")
    now = await admitted(limiter)
    assert len(now[0]) == 7
    for reservation in now[0]:
        reservation.settle(Spent())
    monkeypatch.setattr("deployments.llm.limit_authority.time.time", later.timestamp)
    monkeypatch.setattr("services.llm.limits.limiter.time.time", later.timestamp)
    async with asyncio.timeout(60):
        while (await limiter._authority.standing(rates.of(SOFIA)))[0].used == 0:
            await asyncio.sleep(0.05)
    assert len((await admitted(limiter))[0]) == 4
    await limiter.close()


async def test_without_the_ledger_only_limits_of_money_refuse_calls(
    tmp_path, server_folder, settings
):
    async with PostgresServer(server_folder, durable=False) as server:
        urls = await server.create_database("authority")
        await migrate(urls.owner)
        settings(urls.service)
        await server.stop()
        rates = LimitSettings.model_validate(
            {"agent": {"requests_per_minute": 1000}, "agents": {"agent:sofia": {"usd_per_day": 5}}}
        )
        limiter = LeasedLimiter(LimitAuthority(), rates.of, RecordedEvents())
        other = Caller("agent:borys", "microdao:7")
        async with asyncio.timeout(60):
            while True:
                try:
                    await limiter.reserve(other, DOLLAR)
                    break
                except LimitsUnavailable:
                    await asyncio.sleep(0.1)
        with pytest.raises(LimitsUnavailable, match="spent so far"):
            await limiter.reserve(SOFIA, DOLLAR)
        assert await limiter.reserve(other, DOLLAR)
        await server.start()
        reservations, _ = await admitted(limiter)
        assert len(reservations) == 5
        await limiter.close()


async def test_a_budget_that_is_nearly_spent_is_warned_of_once_in_the_log_and_on_nats(
    database_url, tmp_path, settings, monkeypatch
):
    settings(database_url)
    async with NatsServer(tmp_path / "nats") as server:
        monkeypatch.setenv("NATS_URL", server.url)
        messages, connection = [], await nats.connect(server.url)

        async def hear(message):
            messages.append(orjson.loads(message.data))

        await connection.subscribe("limit.warning", cb=hear)
        await connection.flush()
        rates = LimitSettings.model_validate({"agent": {}, "credential": {"usd_per_day": 10}})
        limiter = LeasedLimiter(LimitAuthority(), rates.of, RecordedEvents())
        reservations, _ = await admitted(limiter)
        for reservation in reservations:
            reservation.settle(Spent(nano_usd=NANO_PER_USD * 9 // 10))
        async with asyncio.timeout(60):
            while not messages:
                await asyncio.sleep(0.05)
        await admitted(limiter)  # further reports
        await connection.flush()
        await connection.close()
        await limiter.close()
    lines = [
        orjson.loads(line)
        for file in (tmp_path / "logs" / "events").glob("limits-*.jsonl")
        for line in file.read_bytes().splitlines()
    ]
    [message], [event] = messages, [line for line in lines if line["event"] == "limits.warning"]
    assert message.pop("event_id").startswith("limit.warning-credential-key-1-usd_per_day-")
    assert message.pop("ts")
    assert message["limit"] == "credential.usd_per_day"
    assert (message["subject"], message["amount"]) == ("key-1", 10.0)
    assert message["used"] >= 8.0
    assert message.items() <= event.items()
