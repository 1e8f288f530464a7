"""Limits and accounting over HTTP: refusals, the cost of every attempt, and `GET /limits`."""

import asyncio
from contextlib import asynccontextmanager
from decimal import Decimal

import httpx
import pytest

from configs.llm.limits import LimitSettings
from contracts.health import Health
from interfaces.http.base.ingress import Ingress
from interfaces.http.llm.chat import LLMRoutes, add_limit_routes, llm_router
from providers.prices import PriceBook
from providers.registry import ProviderResources, build_providers
from providers.routing import RoutingTable
from services.access.authentication import credential_name
from services.llm.estimates import DEFAULT_COMPLETION_TOKENS
from services.llm.limits.limiter import LeasedLimiter
from services.llm.limits.states import LimitStates
from services.llm.proxy import LLMProxy
from tests.support.access import access_control
from tests.support.events import RecordedEvents
from tests.support.llm.limits import InProcessAuthority
from tests.support.llm.proxy import CALLER, KEY, NoEngine, Recorder, settings
from tests.support.llm.upstream import ScriptedUpstream

MESSAGES = [{"role": "user", "content": "Яка столиця України?"}]
BODY = {"model": "plain", "messages": MESSAGES, "metadata": CALLER, "max_tokens": 50}
OTHER = {"agent_id": "agent:borys", "microdao_id": "microdao:8"}
PRICES = {
    "plain": {"input": "1000", "output": "2000", "cached_input": "100"},
    "backup/second": {"input": "1", "output": "1"},
}


@asynccontextmanager
async def running(plays="ok", *, secret=None, admin=None, prices=PRICES, **limits):
    """An application with these limits; yields its client, the upstream and the recorder."""
    recorder, authority = Recorder(), InProcessAuthority()
    rates = LimitSettings.model_validate({"agent": {}, **limits})
    async with ScriptedUpstream() as upstream:
        upstream.script(plays)
        config = settings(upstream.base_url).model_copy(update={"prices": {}})
        config = type(config).model_validate(
            {**config.model_dump(exclude_unset=True), "prices": prices}
        )
        providers = build_providers(
            config, ProviderResources({"OPENAI_API_KEY": KEY}.get, NoEngine())
        )
        limiter = LeasedLimiter(authority, rates.of, RecordedEvents())
        proxy = LLMProxy(
            RoutingTable(config), providers, limiter, recorder, recorder, PriceBook(config)
        )
        router = llm_router(LLMRoutes(lambda: proxy, None, lambda: Health(status="starting")))
        add_limit_routes(router, LimitStates(authority, lambda: rates.of_subject))
        ingress = Ingress(router, access_control(secret, admin), recorder, max_concurrent=100)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(ingress), base_url="http://localhost"
        ) as client:
            yield client, upstream, recorder
        await limiter.close()
        for provider in providers.values():
            await provider.close()


async def states(client, **wanted):
    """`GET /limits` by the limit's name."""
    response = await client.get("/limits", params=wanted)
    assert response.status_code == 200, response.text
    return {row["limit"]: row for row in response.json()["limits"]}


async def until(condition, timeout_s=30.0):
    async with asyncio.timeout(timeout_s):
        while not (found := await condition()):
            await asyncio.sleep(0.02)
    return found


def refusal_of(response):
    assert response.status_code == 429, response.text
    error = response.json()["error"]
    assert (error["type"], error["retryable"]) == ("rate_limited", True)
    return error["details"]


@pytest.mark.parametrize(
    ("kind", "subject", "other"), [("agent", "agent:sofia", 200), ("microdao", "microdao:7", 200)]
)
async def test_a_limit_holds_for_its_subject_alone_and_the_refusal_names_it(kind, subject, other):
    async with running(**{kind: {"requests_per_minute": 2}}) as (client, upstream, recorder):
        assert [(await client.post("/proxy", json=BODY)).status_code for _ in range(2)] == [
            200,
            200,
        ]
        refused = await client.post("/proxy", json=BODY)
        assert refusal_of(refused) == {
            "limit": f"{kind}.requests_per_minute",
            "subject": subject,
            "amount": 2,
            "left": 0,
            "needed": 1,
        }
        assert 1 <= int(refused.headers["Retry-After"]) <= 62
        assert (await client.post("/proxy", json={**BODY, "metadata": OTHER})).status_code == other
        assert (upstream.total, len(recorder.records)) == (3, 3)


async def test_a_credential_has_a_limit_of_its_own_under_a_name_that_is_not_the_secret():
    names = {
        secret: credential_name(secret.encode()) for secret in ("internal-secret", "admin-secret")
    }
    limits = {
        "credential": {"requests_per_minute": 100},
        "credentials": {names["internal-secret"]: {"requests_per_minute": 1}},
    }
    async with running(secret="internal-secret", admin="admin-secret", **limits) as (
        client,
        _,
        recorder,
    ):
        mine, theirs = ({"X-Internal-Secret": secret} for secret in names)
        assert (await client.post("/proxy", json=BODY, headers=mine)).status_code == 200
        refused = await client.post(
            "/proxy",
            json={**BODY, "metadata": OTHER},
            headers={"Authorization": "Bearer internal-secret"},
        )
        assert refusal_of(refused)["subject"] == names["internal-secret"]
        assert (await client.post("/proxy", json=BODY, headers=theirs)).status_code == 200
        (row,) = (await client.get("/limits", headers=theirs)).json()["limits"]
        assert (row["subject"], row["amount"]) == (names["admin-secret"], 100)
        assert row["used"] + row["reserved"] >= 1
        assert "secret" not in str(recorder.events) + str(recorder.records)
        assert [record.credential for record in recorder.records] == list(names.values())


async def test_without_credentials_everybody_is_anonymous():
    async with running(credential={"requests_per_minute": 1}) as (client, _, recorder):
        assert (
            await client.post("/proxy", json=BODY, headers={"X-Internal-Secret": "one"})
        ).status_code == 200
        refused = await client.post(
            "/proxy", json={**BODY, "metadata": OTHER}, headers={"X-Internal-Secret": "two"}
        )
        assert refusal_of(refused)["subject"] == "anonymous"
        assert recorder.records[0].credential == "anonymous"


async def test_tokens_are_reserved_and_then_settled_by_what_the_provider_counted():
    async with running(agent={"tokens_per_minute": 200}) as (client, _, recorder):
        spent = 0
        async with asyncio.timeout(30):
            while (
                response := await client.post("/proxy", json={**BODY, "max_tokens": 20})
            ).status_code == 200:
                spent += response.json()["usage"]["total_tokens"]
        details = refusal_of(response)
        assert details["limit"] == "agent.tokens_per_minute"
        assert details["left"] == 200 - spent < details["needed"]
        assert spent == sum(record.total_tokens for record in recorder.records)
        state = (await states(client, agent_id="agent:sofia"))["agent.tokens_per_minute"]
        assert state["used"] + state["reserved"] <= 200
        too_much = await client.post("/proxy", json={**BODY, "max_tokens": 500})
        assert "ask for less" in too_much.json()["error"]["message"]
        assert (
            too_much.status_code,
            too_much.json()["error"]["type"],
            too_much.json()["error"]["retryable"],
        ) == (429, "over_limit", False)
        assert "Retry-After" not in too_much.headers


async def test_calls_at_a_time_are_bounded_and_a_slot_is_free_again_however_a_call_ends():
    async with running("silence", agent={"concurrent_calls": 2}) as (client, upstream, _):
        held = [
            asyncio.create_task(client.post("/proxy", json={**BODY, "timeout_s": 4}))
            for _ in range(2)
        ]
        await upstream.wait_for(requests=2)
        assert (
            refusal_of(await client.post("/proxy", json=BODY))["limit"] == "agent.concurrent_calls"
        )
        held[0].cancel()
        for task in held:
            await asyncio.wait([task])
        upstream.script("ok")

        async def admitted():
            return (await client.post("/proxy", json=BODY)).status_code == 200

        await until(admitted)


async def test_money_is_reserved_at_the_highest_price_and_settled_at_the_answering_targets():
    async with running(agent={"usd_per_day": 1}) as (client, _, recorder):
        answer = (await client.post("/proxy", json=BODY)).json()
        cost = (
            Decimal(answer["usage"]["prompt_tokens"]) / 1000
            + Decimal(answer["usage"]["completion_tokens"]) * 2 / 1000
        )
        assert recorder.records[0].cost_usd == cost
        assert recorder.events[0]["cost_usd"] == float(cost)
        async with asyncio.timeout(30):
            while (response := await client.post("/proxy", json=BODY)).status_code == 200:
                pass
        assert refusal_of(response)["limit"] == "agent.usd_per_day"
        assert sum(record.cost_usd for record in recorder.records) <= 1
        cheap = {**BODY, "model": "spare"}
        assert (await client.post("/proxy", json=cheap)).status_code == 200


async def test_a_model_without_a_price_has_no_cost_and_not_the_cost_zero():
    async with running(prices={}) as (client, _, recorder):
        assert (await client.post("/proxy", json=BODY)).status_code == 200
        assert recorder.records[0].cost_usd is None
        assert recorder.records[0].tries[0].cost_usd is None
        assert recorder.events[0]["cost_usd"] is None


async def test_every_attempt_is_accounted_to_the_model_that_took_it():
    async with running() as (client, upstream, recorder):
        upstream.script("http_401", model="first")
        answer = (await client.post("/proxy", json={**BODY, "model": "guarded"})).json()
        (record,) = recorder.records
        assert [
            (tried.provider, tried.physical_model, tried.outcome) for tried in record.tries
        ] == [
            ("openai", "first", "upstream_auth_failed"),
            ("backup", "second", "ok"),
        ]
        assert record.tries[0].total_tokens == 0
        assert (
            record.tries[1].total_tokens == answer["usage"]["total_tokens"] == record.total_tokens
        )
        assert (
            record.cost_usd == record.tries[1].cost_usd == Decimal(record.total_tokens) / 1_000_000
        )


async def test_a_call_that_reached_no_provider_costs_no_request_and_no_row():
    async with running(agent={"requests_per_minute": 2}) as (client, _, recorder):
        for _ in range(3):
            assert (await client.post("/proxy", json={**BODY, "model": "nokey"})).status_code == 503
        assert [(await client.post("/proxy", json=BODY)).status_code for _ in range(3)].count(
            200
        ) >= 1
        assert all(record.provider == "openai" for record in recorder.records)


async def test_a_caller_that_leaves_a_whole_call_pays_for_the_prompt_and_the_time():
    async with running("silence", agent={"tokens_per_minute": 10_000}) as (
        client,
        upstream,
        recorder,
    ):
        call = asyncio.create_task(client.post("/proxy", json={**BODY, "timeout_s": 300}))
        await upstream.wait_for(requests=1)
        call.cancel()
        await upstream.wait_for(cancelled=1)
        (record,) = recorder.records
        assert (record.outcome, record.estimated) == ("cancelled", True)
        assert record.completion_tokens > 0
        assert record.prompt_tokens > 0
        assert record.cost_usd > 0


async def test_limits_are_shown_with_what_is_used_left_and_when_it_is_free_again():
    limits = {
        "agent": {
            "requests_per_minute": 10,
            "tokens_per_minute": 1_000,
            "concurrent_calls": 3,
            "usd_per_day": 5,
            "usd_per_month": 20,
        },
        "microdao": {"requests_per_minute": 50},
    }
    async with running(**limits) as (client, _, _):
        await client.post("/proxy", json=BODY)

        async def counted_states():
            found = await states(client, agent_id="agent:sofia", microdao_id="microdao:7")
            return found if found["agent.requests_per_minute"]["used"] else None

        found = await until(counted_states)
        assert set(found) == {
            *(f"agent.{meter}" for meter in limits["agent"]),
            "microdao.requests_per_minute",
        }
        requests, money = found["agent.requests_per_minute"], found["agent.usd_per_day"]
        assert (requests["amount"], requests["used"], requests["per"], requests["subject"]) == (
            10,
            1,
            "minute",
            "agent:sofia",
        )
        assert requests["used"] + requests["reserved"] + requests["left"] == 10
        assert 0 < requests["reset_s"] <= 61
        assert (money["amount"], money["per"]) == (5, "day")
        assert 0 < money["reset_s"] <= 86_400
        assert (
            found["agent.concurrent_calls"]["reset_s"],
            found["agent.concurrent_calls"]["per"],
        ) == (None, None)
        assert (await states(client)) == {}
        other = await states(client, agent_id="agent:other")
        assert other["agent.requests_per_minute"]["used"] == 0


@pytest.mark.parametrize("query", ["?agent_id=", "?agent=x", f"?agent_id={'x' * 300}"])
async def test_a_wrong_question_for_limits_is_a_400(query):
    async with running() as (client, _, _):
        assert (await client.get(f"/limits{query}")).status_code == 400


def test_an_override_inherits_unset_limits_and_null_switches_one_off():
    rates = LimitSettings.model_validate(
        {
            "agent": {"requests_per_minute": 10, "tokens_per_minute": 100},
            "agents": {"agent:vip": {"requests_per_minute": None}},
        }
    )
    reloaded = LimitSettings.model_validate(rates.model_dump(mode="json", exclude_unset=True))
    assert [
        (limit.key.meter, limit.amount) for limit in reloaded.of_subject("agent", "agent:vip")
    ] == [("tokens_per_minute", 100)]
    assert len(reloaded.of_subject("agent", "agent:other")) == 2


@pytest.mark.parametrize(("place", "estimated"), [("every_chunk", False), ("final", True)])
async def test_a_broken_stream_is_accounted_by_reported_usage_or_else_by_its_pieces(
    place, estimated
):
    async with running(f"cut?after=3&usage={place}") as (client, _, recorder):
        response = await client.post("/stream", json=BODY)
        assert "event: error" in response.text
        (record,) = recorder.records
        assert (record.outcome, record.estimated) == ("upstream_invalid_response", estimated)
        assert record.prompt_tokens > 0
        assert record.completion_tokens > 0
        assert record.cost_usd > 0


@pytest.mark.parametrize(
    ("limits", "sent"),
    [
        ({"agent": {"tokens_per_minute": 100_000}}, DEFAULT_COMPLETION_TOKENS),
        ({"microdao": {"usd_per_day": 100}}, DEFAULT_COMPLETION_TOKENS),
        ({"agent": {"requests_per_minute": 5, "concurrent_calls": 5}}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("path", ["/proxy", "/stream"])
async def test_under_a_token_limit_an_answer_is_not_longer_than_its_reservation(limits, sent, path):
    async with running(**limits) as (client, upstream, _):
        unbounded = {name: value for name, value in BODY.items() if name != "max_tokens"}
        assert (await client.post(path, json=unbounded)).status_code == 200
        assert upstream.requests[-1].body.get("max_tokens") == sent
        assert (await client.post(path, json={**BODY, "max_tokens": 77})).status_code == 200
        assert upstream.requests[-1].body["max_tokens"] == 77
