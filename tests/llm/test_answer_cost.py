"""`cost_usd` of an answer: what its own call took; nothing for an answer from the cache."""

from decimal import Decimal

from tests.support.llm.answers import llm_replica
from tests.support.llm.batches import items_of, request, submit, wait_for
from tests.support.llm.proxy import CALLER
from tests.support.llm.upstream import ScriptedUpstream

BODY = {
    "model": "plain",
    "messages": [{"role": "user", "content": "Привіт"}],
    "metadata": CALLER,
    "temperature": 0,
}
PRICES = {"plain": {"input": 1000, "output": 2000}}
CACHED = {**BODY, "cache": {"ttl_s": 60}}


def expected(answer):
    usage = answer["usage"]
    return (usage["prompt_tokens"] + 2 * usage["completion_tokens"]) * Decimal("0.001")


async def test_a_cost_is_a_decimal_text_of_dollars_and_absent_without_a_price(database_url):
    async with (
        ScriptedUpstream() as upstream,
        llm_replica(database_url, upstream.base_url, prices=PRICES) as replica,
    ):
        answer = (await replica.client.post("/proxy", json=BODY)).json()
        assert isinstance(answer["cost_usd"], str)
        assert Decimal(answer["cost_usd"]) == expected(answer) > 0
        other = (await replica.client.post("/proxy", json={**BODY, "model": "spare"})).json()
        assert other["content"]
        assert "cost_usd" not in other


async def test_an_answer_from_the_cache_costs_nothing_and_one_under_its_key_stays_the_same(
    database_url,
):
    async with (
        ScriptedUpstream() as upstream,
        llm_replica(database_url, upstream.base_url, prices=PRICES) as replica,
    ):
        first, again = [(await replica.client.post("/proxy", json=CACHED)).json() for _ in "12"]
        assert (first.get("cached"), again["cached"]) == (None, True)
        assert Decimal(first["cost_usd"]) == expected(first)
        assert "cost_usd" not in again
        key = {"Idempotency-Key": "once"}
        kept = [(await replica.client.post("/proxy", json=BODY, headers=key)).json() for _ in "12"]
        assert kept[0] == kept[1]
        assert Decimal(kept[0]["cost_usd"]) == expected(kept[0])


async def test_the_result_of_a_batch_says_what_it_cost(database_url):
    async with (
        ScriptedUpstream() as upstream,
        llm_replica(database_url, upstream.base_url, prices=PRICES) as replica,
    ):
        batch = await submit(replica.client, [request("one")])
        await wait_for(replica.client, batch["id"])
        [item] = await items_of(replica.client, batch["id"])
        assert Decimal(item["response"]["cost_usd"]) == expected(item["response"])
