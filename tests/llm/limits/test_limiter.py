import asyncio
import time

import pytest

from contracts.errors import LimitsUnavailable, OverLimit, RateLimited
from contracts.llm.limits import NANO_PER_USD, NOTHING, Caller, Estimate, LimitKey, Spent
from services.llm.limits.limiter import LeasedLimiter
from services.llm.limits.periods import period_of
from tests.support.events import RecordedEvents
from tests.support.llm.limits import InProcessAuthority, limits, requests_per_minute

SOFIA = Caller("agent:sofia", "microdao:7")
BORYS = Caller("agent:borys", "microdao:7")
CALL = Estimate()


@pytest.fixture
async def open_limiter():
    """Makes limiters and closes them all."""
    opened = []

    def open_one(authority, limits_of):
        opened.append(LeasedLimiter(authority, limits_of, RecordedEvents()))
        return opened[-1]

    yield open_one
    for limiter in opened:
        await limiter.close()


async def admitted(limiter, attempts, estimate=CALL):
    """Returns the reservations of those that were admitted."""
    results = await asyncio.gather(
        *(limiter.reserve(SOFIA, estimate) for _ in range(attempts)), return_exceptions=True
    )
    assert all(
        not isinstance(result, Exception) or isinstance(result, RateLimited) for result in results
    )
    return [result for result in results if not isinstance(result, Exception)]


async def eventually_admitted(limiter, caller=SOFIA, estimate=CALL):
    """Waits until a call is admitted, and returns its reservation."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await limiter.reserve(caller, estimate)
            except (RateLimited, LimitsUnavailable):
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("replicas", [1, 2, 5])
async def test_replicas_together_admit_exactly_the_limit(open_limiter, replicas):
    authority = InProcessAuthority()
    limiters = [open_limiter(authority, requests_per_minute(100)) for _ in range(replicas)]
    counts = await asyncio.gather(*(admitted(limiter, 150) for limiter in limiters))
    assert 100 - replicas <= sum(map(len, counts)) <= 100


@pytest.mark.parametrize(
    ("amounts", "estimate", "details"),
    [
        (
            {"requests_per_minute": 1},
            Estimate(),
            {"limit": "agent.requests_per_minute", "amount": 1, "left": 0, "needed": 1},
        ),
        (
            {"tokens_per_minute": 100},
            Estimate(60),
            {"limit": "agent.tokens_per_minute", "amount": 100, "left": 40, "needed": 60},
        ),
        (
            {"concurrent_calls": 1},
            Estimate(),
            {"limit": "agent.concurrent_calls", "amount": 1, "left": 0, "needed": 1},
        ),
        (
            {"usd_per_day": 1},
            Estimate(0, 600_000_000),
            {"limit": "agent.usd_per_day", "amount": 1.0, "left": 0.4, "needed": 0.6},
        ),
        (
            {"usd_per_month": 1},
            Estimate(0, 600_000_000),
            {"limit": "agent.usd_per_month", "amount": 1.0, "left": 0.4, "needed": 0.6},
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_a_refusal_names_limit_subject_what_is_left_and_when(
    open_limiter, amounts, estimate, details
):
    limiter = open_limiter(InProcessAuthority(), limits(**amounts))
    await limiter.reserve(SOFIA, estimate)
    with pytest.raises(RateLimited) as caught:
        await limiter.reserve(SOFIA, estimate)
    assert caught.value.details == {"subject": "agent:sofia", **details}
    assert caught.value.retry_after_s >= 1
    await limiter.reserve(BORYS, estimate)


async def test_a_call_over_the_whole_limit_is_refused_without_a_retry(open_limiter):
    limiter = open_limiter(InProcessAuthority(), limits(tokens_per_minute=100))
    for _ in range(2):  # whatever is left of it
        with pytest.raises(OverLimit, match="ask for less") as caught:
            await limiter.reserve(SOFIA, Estimate(101))
        assert (caught.value.retry_after_s, caught.value.retryable) == (None, False)
        assert caught.value.details == {
            "limit": "agent.tokens_per_minute",
            "subject": "agent:sofia",
            "amount": 100,
            "needed": 101,
        }
        await eventually_admitted(limiter, estimate=Estimate(50))


async def test_a_refused_call_holds_nothing_of_the_other_limits(open_limiter):
    limiter = open_limiter(
        InProcessAuthority(),
        limits(requests_per_minute=2, tokens_per_minute=100, concurrent_calls=5),
    )
    with pytest.raises(RateLimited):
        await limiter.reserve(SOFIA, Estimate(101))
    assert len(await admitted(limiter, 3, Estimate(10))) == 2


async def test_settling_returns_unspent_units_once(
    open_limiter,
):
    limiter = open_limiter(InProcessAuthority(), limits(tokens_per_minute=100, concurrent_calls=2))
    first = await limiter.reserve(SOFIA, Estimate(90))
    assert not await admitted(limiter, 1, Estimate(50))
    first.settle(Spent(tokens=30))
    first.settle(Spent(tokens=70))
    assert len(await admitted(limiter, 4, Estimate(35))) == 2


async def test_a_call_that_no_provider_saw_costs_no_request(open_limiter):
    limiter = open_limiter(InProcessAuthority(), requests_per_minute(2))
    for _ in range(5):
        (await limiter.reserve(SOFIA, Estimate())).settle(NOTHING)
    assert len(await admitted(limiter, 5)) >= 1


async def test_a_slot_that_one_replica_frees_another_one_gets(open_limiter):
    authority = InProcessAuthority()
    one, other = (open_limiter(authority, limits(concurrent_calls=1)) for _ in range(2))
    held = await one.reserve(SOFIA, Estimate())
    assert not await admitted(other, 1)
    held.settle(Spent())
    await eventually_admitted(other)


async def test_a_generous_limit_costs_few_calls(open_limiter):
    authority = InProcessAuthority()
    limiter = open_limiter(authority, requests_per_minute(240_000))
    began = time.monotonic()
    for _ in range(2_000):
        await limiter.reserve(SOFIA, Estimate())
    assert authority.calls < 20 + 2 * (time.monotonic() - began)


async def test_refusals_do_not_flood_the_authority(open_limiter):
    authority = InProcessAuthority()
    limiter = open_limiter(authority, requests_per_minute(1))
    began = time.monotonic()
    for _ in range(20):
        await admitted(limiter, 25)
    assert authority.calls <= 6 + 12 * (time.monotonic() - began)


async def test_without_limits_the_authority_is_not_asked(open_limiter):
    authority = InProcessAuthority()
    await open_limiter(authority, requests_per_minute(None)).reserve(SOFIA, Estimate())
    assert authority.calls == 0


async def test_an_unreachable_authority_refuses_everyone_and_recovers(open_limiter):
    authority = InProcessAuthority()
    authority.away = True
    limiter = open_limiter(authority, requests_per_minute(10))
    results = await asyncio.gather(
        *(limiter.reserve(SOFIA, Estimate()) for _ in range(5)), return_exceptions=True
    )
    assert all(isinstance(result, LimitsUnavailable) for result in results)
    authority.away = False
    assert len(await admitted(limiter, 20)) == 10


async def test_a_restarted_authority_collects_reports_before_it_grants(open_limiter):
    authority = InProcessAuthority(learning_s=0.5)
    limiters = [
        open_limiter(authority, limits(requests_per_minute=20, concurrent_calls=8))
        for _ in range(2)
    ]
    reservations = [await eventually_admitted(limiters[index % 2]) for index in range(6)]
    authority.restart()
    waits = []
    async with asyncio.timeout(30):
        while len(reservations) < 8:
            try:
                reservations.append(
                    await limiters[len(reservations) % 2].reserve(SOFIA, Estimate())
                )
            except LimitsUnavailable as error:
                waits.append(error.retry_after_s)
                await asyncio.sleep(0.05)
    assert waits
    assert all(wait > 0 for wait in waits)
    with pytest.raises(RateLimited):  # eight calls run: six of them began before the restart
        await eventually_refused(limiters[0])
    for reservation in reservations:
        reservation.settle(Spent())
    for limiter in limiters:
        while reservation := await one_or_none(limiter):
            reservations.append(reservation)
            reservation.settle(Spent())
    assert 18 <= len(reservations) <= 20


async def eventually_refused(limiter):
    """Asks until a limit refuses, not the authority's learning."""
    async with asyncio.timeout(30):
        while True:
            try:
                await limiter.reserve(SOFIA, Estimate())
            except LimitsUnavailable:
                await asyncio.sleep(0.05)


async def one_or_none(limiter):
    """A reservation, or None when the request limit is exhausted; waits while slots are short."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await limiter.reserve(SOFIA, Estimate())
            except RateLimited as error:
                if error.details["limit"] == "agent.requests_per_minute":
                    return None
                await asyncio.sleep(0.02)
            except LimitsUnavailable:
                await asyncio.sleep(0.02)


async def test_money_spent_before_the_authority_began_is_read_from_the_ledger(open_limiter):
    key = LimitKey("agent", "agent:sofia", "usd_per_day")
    authority = InProcessAuthority(ledger={key: {"dead-replica": 9 * NANO_PER_USD}})
    limiter = open_limiter(authority, limits(usd_per_day=10))
    assert await limiter.reserve(SOFIA, Estimate(0, NANO_PER_USD))
    assert not await admitted(limiter, 1, Estimate(0, NANO_PER_USD))


async def test_while_the_ledger_cannot_be_read_money_is_not_spent(open_limiter):
    authority = InProcessAuthority()
    authority.read_ledger = lambda key: None
    limiter = open_limiter(authority, limits(usd_per_day=10))
    with pytest.raises(LimitsUnavailable):
        await limiter.reserve(SOFIA, Estimate(0, NANO_PER_USD))
    key = LimitKey("agent", "agent:sofia", "usd_per_day")
    authority.book.load(key, period_of(key.meter, time.time()), {})
    assert await limiter.reserve(SOFIA, Estimate(0, NANO_PER_USD))


async def test_other_limits_after_a_reload_hold_at_once_and_nothing_is_forgotten(open_limiter):
    limiter = open_limiter(InProcessAuthority(), requests_per_minute(10))
    assert len(await admitted(limiter, 20)) == 10
    limiter.reconfigure(requests_per_minute(15))
    await eventually_admitted(limiter)
    assert len(await admitted(limiter, 20)) == 4


@pytest.mark.parametrize("meter", ["requests_per_minute", "tokens_per_minute", "usd_per_day"])
async def test_a_smaller_limit_after_a_reload_is_not_exceeded_by_earlier_leases(
    open_limiter, meter
):
    of = {
        "requests_per_minute": (1, Estimate()),
        "tokens_per_minute": (10, Estimate(10)),
        "usd_per_day": (1, Estimate(0, NANO_PER_USD)),
    }
    unit, estimate = of[meter]
    limiters = [
        open_limiter(authority, limits(**{meter: 400 * unit}))
        for authority in [InProcessAuthority()]
        for _ in range(2)
    ]
    for limiter in limiters:
        for reservation in await admitted(
            limiter, 20, estimate
        ):  # leases more, to be ready for as many again
            reservation.settle(
                Spent(requests=1, tokens=estimate.tokens, nano_usd=estimate.nano_usd)
            )
    for limiter in limiters:
        limiter.reconfigure(limits(**{meter: 45 * unit}))
    counts = [len(await admitted(limiter, 60, estimate)) for limiter in limiters]
    assert 1 <= sum(counts) <= 5, "40 of 45 were spent"


@pytest.mark.parametrize("asks_meanwhile", [False, True])
async def test_running_calls_and_new_ones_together_stay_within_a_smaller_limit_after_a_reload(
    open_limiter, asks_meanwhile
):
    authority = InProcessAuthority()
    limiters = [open_limiter(authority, limits(concurrent_calls=8)) for _ in range(2)]
    held = [reservation for limiter in limiters for reservation in await admitted(limiter, 3)]
    assert len(held) >= 5
    asking = [asyncio.create_task(admitted(limiter, 1)) for limiter in limiters if asks_meanwhile]
    await asyncio.sleep(0)  # the question is under way
    for limiter in limiters:
        limiter.reconfigure(limits(concurrent_calls=2))
    held += [reservation for task in asking for reservation in await task]
    while held:
        before = len(held)
        held.pop(0).settle(Spent())
        for limiter in limiters:
            held += await admitted(limiter, 2)
            assert len(held) <= max(2, before - 1), (
                "who ends makes room for nobody while more run than may"
            )
        if before <= 2:
            break
    for reservation in held:
        reservation.settle(Spent())
    (await eventually_admitted(limiters[0])).settle(Spent())


async def test_a_caller_that_leaves_while_it_waits_holds_nothing(open_limiter):
    authority = InProcessAuthority()
    limiter = open_limiter(authority, limits(concurrent_calls=1))
    waiting = asyncio.create_task(limiter.reserve(SOFIA, Estimate()))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await eventually_admitted(limiter)


async def test_a_defect_in_one_exchange_refuses_its_calls_is_logged_and_passes(events):
    authority = InProcessAuthority()
    working = authority.exchange

    async def broken(report):
        raise RuntimeError("defect")

    authority.exchange = broken
    limiter = LeasedLimiter(authority, requests_per_minute(10), events)
    with pytest.raises(LimitsUnavailable):
        await limiter.reserve(SOFIA, CALL)
    authority.exchange = working
    await eventually_admitted(limiter)
    await limiter.close()
    assert [
        len(events.named(name)) for name in ("limits.turn_failed", "limits.away", "limits.back")
    ] == [1, 1, 1]
