import asyncio

import pytest

from contracts.errors import LimitsUnavailable, RateLimited
from contracts.limits import Caller, Estimate
from services.llm_proxy.limiter import LeasedLimiter
from tests.support.limits import InProcessAuthority

SOFIA = Caller("agent:sofia", "microdao:7")


async def admitted(limiter, attempts):
    results = await asyncio.gather(*(limiter.reserve(SOFIA, Estimate()) for _ in range(attempts)), return_exceptions=True)
    assert all(not isinstance(result, Exception) or isinstance(result, RateLimited) for result in results)
    return sum(not isinstance(result, Exception) for result in results)


async def test_two_replicas_never_admit_more_than_the_limit_together():
    authority = InProcessAuthority()
    replicas = [LeasedLimiter(authority, lambda _: 100) for _ in range(2)]
    counts = await asyncio.gather(*(admitted(replica, 150) for replica in replicas))
    assert 90 <= sum(counts) <= 100


async def test_a_refusal_names_limit_subject_and_wait():
    limiter = LeasedLimiter(InProcessAuthority(), lambda _: 1)
    await limiter.reserve(SOFIA, Estimate())
    with pytest.raises(RateLimited) as caught:
        await limiter.reserve(SOFIA, Estimate())
    assert caught.value.details == {"limit": "agent.requests_per_minute", "subject": "agent:sofia", "per_minute": 1, "left": 0}
    assert 1 <= caught.value.retry_after_s <= 62


async def test_a_generous_limit_costs_few_calls():
    authority = InProcessAuthority()
    limiter = LeasedLimiter(authority, lambda _: 240_000)
    for _ in range(2_000):
        await limiter.reserve(SOFIA, Estimate())
    assert authority.calls < 20


async def test_refusals_do_not_flood_the_authority():
    authority = InProcessAuthority()
    limiter = LeasedLimiter(authority, lambda _: 1)
    await admitted(limiter, 500)
    assert authority.calls <= 3


async def test_no_limit_asks_nobody():
    authority = InProcessAuthority()
    await LeasedLimiter(authority, lambda _: None).reserve(SOFIA, Estimate())
    assert authority.calls == 0


async def test_an_unreachable_authority_refuses_everyone_and_recovers():
    authority = InProcessAuthority()
    working = authority.lease

    async def away(*_):
        raise LimitsUnavailable("away")

    authority.lease = away
    limiter = LeasedLimiter(authority, lambda _: 10)
    results = await asyncio.gather(*(limiter.reserve(SOFIA, Estimate()) for _ in range(5)), return_exceptions=True)
    assert all(isinstance(result, LimitsUnavailable) for result in results)
    authority.lease = working
    await limiter.reserve(SOFIA, Estimate())
