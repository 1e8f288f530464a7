"""Limits of a principal: over all its calls together, shown to it, and changed while it calls."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import orjson
import pytest

from backends.access.principals import PostgresPrincipals
from configs.llm.limits import LimitSettings
from contracts.access.keys import Snapshot
from contracts.access.principals import Grants, Principal, acting_as
from contracts.access.settings import IdentityProviderSettings
from contracts.errors import Forbidden, LimitsUnavailable, RateLimited
from contracts.llm.limits import NANO_PER_USD, Estimate, Spent
from contracts.llm.requests import CallMetadata, ProxyRequest
from deployments.llm.limit_authority import LimitAuthority
from interfaces.http.base.access import AccessControl
from interfaces.http.base.ingress import Ingress
from interfaces.http.llm.chat import LLMRoutes, add_limit_routes, llm_router
from services.access.authentication import Authentication
from services.llm.accounting import caller_of
from services.llm.batches import _restored
from services.llm.limits.limiter import LeasedLimiter
from services.llm.limits.states import LimitStates
from tests.support.access import APPLIED, SIGNING_KEY, fixed_access, opened_access
from tests.support.events import RecordedEvents
from tests.support.identity_provider import section
from tests.support.llm.answers import llm_replica
from tests.support.llm.batches import items_of, request, submit, wait_for
from tests.support.llm.limits import InProcessAuthority
from tests.support.llm.proxy import proxy_over
from tests.support.llm.upstream import ScriptedUpstream

KEYS = {"dk_sofia-one": "sofia-bot", "dk_sofia-two": "sofia-bot", "dk_borys": "borys-bot"}
EVERYWHERE = {"agents": ["*"], "microdaos": ["*"]}
TOKEN = "eyJhbGciOiJub25lIn0.of-an-outside.provider"


PROVIDER = IdentityProviderSettings.model_validate(section("/keys.json"))
OLENA, PETRO = f"{PROVIDER.prefix}olena", f"{PROVIDER.prefix}petro"


def grants(**limits):
    return Grants.model_validate({**EVERYWHERE, "limits": limits})


def presenting(key):
    return {"Authorization": f"Bearer {key}"}


class OneToken:
    """An identity provider that vouches for one person with these grants."""

    def __init__(self, given):
        self.person = Principal(OLENA, given, OLENA, issued=True)

    def read(self, token):
        return self.person if token == TOKEN.encode() else None


@asynccontextmanager
async def running(*, provider=None, rates=None, **principals):
    """An application that demands a key; yields its client and what knows the callers."""
    settings = LimitSettings.model_validate({"agent": {}, **(rates or {})})
    provided = {"identity_provider": section("/keys.json")}
    known = fixed_access("s" * 32, None, principals=principals, keys=KEYS, settings=provided)
    access = Authentication("s" * 32, None, known.directory, provider)
    authority = InProcessAuthority()
    async with (
        ScriptedUpstream() as upstream,
        proxy_over(upstream.base_url, source=authority, limits_of=settings.of) as (proxy, recorder),
    ):
        router = llm_router(LLMRoutes(lambda: proxy, None, lambda: None))
        add_limit_routes(router, LimitStates(authority, lambda: settings.of_subject))
        ingress = Ingress(router, AccessControl(access), recorder, max_concurrent=100)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(ingress), base_url="http://localhost"
        ) as client:
            yield client, access


async def ask(client, key, agent="agent:sofia"):
    """Returns the status of a call, and the limit that refused it."""
    body = {
        "model": "plain",
        "messages": [{"role": "user", "content": "Привіт"}],
        "metadata": {"agent_id": agent, "microdao_id": "microdao:7"},
        "max_tokens": 10,
    }
    answer = await client.post("/proxy", json=body, headers=presenting(key))
    error = answer.json().get("error", {})
    return answer.status_code, error.get("details", {}).get("limit")


async def shown(client, key):
    answer = await client.get("/limits", headers=presenting(key))
    assert answer.status_code == 200, answer.text
    return {row["limit"]: (row["subject"], row["amount"]) for row in answer.json()["limits"]}


def take(access, **principals):
    """What a change of principals does in each replica, within two seconds."""
    directory = access.directory
    keys = directory._snapshot.keys
    directory.take(Snapshot(directory.revision + 1, principals, keys, SIGNING_KEY, APPLIED))


async def test_all_calls_of_a_principal_share_its_limit_whatever_key_and_agent():
    of = {"sofia-bot": grants(requests_per_minute=2), "borys-bot": grants()}
    async with running(**of) as (client, _):
        assert await ask(client, "dk_sofia-one") == (200, None)
        assert await ask(client, "dk_sofia-two", "agent:other") == (200, None)
        assert await ask(client, "dk_sofia-one") == (429, "credential.requests_per_minute")
        for _ in range(4):
            assert await ask(client, "dk_borys") == (200, None)
        assert await shown(client, "dk_sofia-two") == {
            "credential.requests_per_minute": ("sofia-bot", 2)
        }
        assert await shown(client, "dk_borys") == {}


async def test_of_two_limits_the_smaller_counts():
    rates = {"credential": {"requests_per_minute": 3, "tokens_per_minute": 500}}
    of = {
        "sofia-bot": grants(requests_per_minute=100, tokens_per_minute=400),
        "borys-bot": grants(),
    }
    async with running(rates=rates, **of) as (client, _):
        assert await shown(client, "dk_sofia-one") == {
            "credential.requests_per_minute": ("sofia-bot", 3),
            "credential.tokens_per_minute": ("sofia-bot", 400),
        }
        assert await shown(client, "dk_borys") == {
            "credential.requests_per_minute": ("borys-bot", 3),
            "credential.tokens_per_minute": ("borys-bot", 500),
        }


async def test_a_changed_limit_counts_from_then_on_and_what_was_spent_stays():
    async with running(**{"sofia-bot": grants(requests_per_minute=100)}) as (client, access):
        for _ in range(3):
            assert (await ask(client, "dk_sofia-one"))[0] == 200
        for amount in (3, 100, 3, 6, None):
            limits = {} if amount is None else {"requests_per_minute": amount}
            take(access, **{"sofia-bot": grants(**limits)})
            if amount == 3:
                assert (await ask(client, "dk_sofia-one"))[0] == 429
                continue
            async with asyncio.timeout(30):  # a refusal is repeated for a tenth of a second
                while (await ask(client, "dk_sofia-one"))[0] != 200:
                    await asyncio.sleep(0.05)
        assert await shown(client, "dk_sofia-one") == {}


async def test_a_person_of_an_identity_provider_has_the_limits_of_its_grants():
    async with running(provider=OneToken(grants(requests_per_minute=1))) as (client, _):
        assert await ask(client, TOKEN) == (200, None)
        assert await ask(client, TOKEN, "agent:other") == (429, "credential.requests_per_minute")
        assert await shown(client, TOKEN) == {"credential.requests_per_minute": (OLENA, 1)}


async def test_a_delegation_carries_the_limits_of_its_principal():
    async with running(provider=OneToken(grants(requests_per_minute=1))) as (client, access):
        person = access.principal([TOKEN.encode()])
        for principal in (person, replace(person, name=PETRO, credential=PETRO)):
            token = access.delegations.token(principal)
            assert (await ask(client, token))[0] == 200
            assert (await ask(client, token))[0] == 429


async def test_a_batch_counts_against_the_limits_of_whoever_submitted_it(database_url):
    rates, authority = LimitSettings.model_validate({"agent": {}}), InProcessAuthority()
    of = {"sofia-bot": grants(tokens_per_minute=5), "borys-bot": grants()}
    async with (
        ScriptedUpstream() as upstream,
        llm_replica(
            database_url,
            upstream.base_url,
            source=authority,
            limits_of=rates.of,
            principals=of,
            keys=KEYS,
        ) as replica,
    ):
        outcomes = {}
        for key in ("dk_sofia-one", "dk_borys"):
            replica.client.headers.update(presenting(key))
            batch = await submit(replica.client, [request("one", max_tokens=20)])
            await wait_for(replica.client, batch["id"])
            [item] = await items_of(replica.client, batch["id"])
            outcomes[key] = item.get("error", {}).get("type")
        assert outcomes == {"dk_sofia-one": "over_limit", "dk_borys": None}
        assert upstream.total == 1


async def test_a_queued_batch_ends_where_its_principal_may_no_longer_act_so(database_url):
    of = {"sofia-bot": Grants(agents=["agent:a"], microdaos=["microdao:7"], models=["one"])}
    async with llm_replica(database_url, "http://127.0.0.1:9", principals=of, keys=KEYS) as replica:
        for changed in ({"model": "two"}, {"microdao_id": "microdao:8"}, {"agent_id": "agent:b"}):
            body = {name: value for name, value in request("one").items() if name != "custom_id"}
            tenant = {"agent_id": "agent:a", "microdao_id": "microdao:7", **changed}
            body |= {"model": tenant.pop("model", "one"), "metadata": tenant}
            queued = ProxyRequest.model_validate(body)
            with pytest.raises(Forbidden):
                await replica.runtime._complete_uncounted(queued, "r", {"sub": "sofia-bot"})


def test_a_batch_of_a_former_version_is_worked_on_for_the_graph_under_its_credential():
    body = {name: value for name, value in request("one").items() if name != "custom_id"}
    stored = orjson.dumps({"credential": "key-1", "request": body}).decode()
    _, claims = _restored(stored)
    caller = fixed_access().directory.claimed(claims)
    assert (caller.name, caller.credential) == ("internal", "key-1")


async def test_a_budget_in_postgresql_is_exact_and_a_larger_one_reaches_replicas(
    database, database_url, monkeypatch, tmp_path
):
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("DAARION_DATA_DIR", str(tmp_path))
    events, rates = RecordedEvents(), LimitSettings.model_validate({"agent": {}})
    store, authority = PostgresPrincipals(database, events), LimitAuthority()
    await store.put("sofia-bot", grants(usd_per_day=2))
    replicas = [LeasedLimiter(authority, rates.of, events) for _ in range(2)]
    async with opened_access(database_url, events) as access:

        async def admitted():
            """How many calls of a dollar both replicas admit together."""
            count = 0
            async with asyncio.timeout(60):
                for limiter in replicas:
                    refused = False
                    while not refused:
                        with acting_as(access.directory.named("sofia-bot")):
                            metadata = CallMetadata(agent_id="agent:a", microdao_id="microdao:7")
                            caller = caller_of(metadata, "sofia-bot")
                        try:
                            call = await limiter.reserve(caller, Estimate(nano_usd=NANO_PER_USD))
                            call.settle(Spent(nano_usd=NANO_PER_USD))
                            count += 1
                        except RateLimited:
                            refused = True
                        except LimitsUnavailable:
                            await asyncio.sleep(0.1)
            return count

        assert await admitted() == 2
        await store.put("sofia-bot", grants(usd_per_day=5))
        async with asyncio.timeout(30):
            while access.directory.named("sofia-bot").limits.usd_per_day != 5:
                await asyncio.sleep(0.1)
        assert await admitted() == 3
    for limiter in replicas:
        await limiter.close()


@pytest.mark.parametrize("unlimited", [Grants(), grants(), grants(usd_per_day=None)])
def test_a_principal_without_limits_costs_no_plan_of_its_own(unlimited):
    assert Principal("a", unlimited, "a").limits is None
