"""Every way of reading returns what a store accepted; a store refuses with 400."""

import json
from itertools import count

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from contracts.memory.items import MEMORY_META
from tests.support.memory.application import Memory, succeeded

TENANTS = count()
FACT = {"kind": "task", "content": {"text": "факт"}}
letters = st.characters(codec=None) | st.sampled_from(
    "\0\x01\x1f\x7f\ud800\udfff\u2028\ufeff\uffff\U0010ffff'\"\\%{}:,"
)
texts = st.text(letters, max_size=20) | st.text("абв \n", max_size=300)
numbers = (
    st.integers()
    | st.floats()
    | st.sampled_from(
        [2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**400, 5e-324, 1.7976931348623157e308]
    )
)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=12,
)
deep = st.integers(1, 60).map(lambda depth: json.loads('{"а":[' * depth + '"факт"' + "]}" * depth))
moments = (
    st.none()
    | numbers
    | texts
    | st.datetimes(timezones=st.timezones()).map(lambda moment: moment.isoformat())
    | st.sampled_from(
        [
            "infinity",
            "-infinity",
            "now",
            "9999-12-31T23:59:60Z",
            "0001-01-01T00:00:00+23:59",
            "9999-12-31T23:59:59-23:59",
        ]
    )
)
bodies = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["conversation", "kb", "task", "dao-event"]),
        "content": st.fixed_dictionaries({"text": texts})
        | st.dictionaries(texts, values, max_size=3)
        | deep,
    },
    optional={
        "meta": st.dictionaries(
            texts | st.sampled_from(["source", "timestamp", MEMORY_META, "path"]),
            values,
            max_size=3,
        )
        | deep
        | values,
        "channel_id": texts | st.just("к" * 256) | st.none(),
        "created_at": moments,
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@example(body={**FACT, "created_at": "0001-01-01T00:00:00+23:59"}, agent="agent:sofia")
@example(body={**FACT, "created_at": "9999-12-31T23:59:59-23:59"}, agent="agent:sofia")
@example(
    body={
        **FACT,
        "meta": {"n": [2**64 - 1, -(2**63), 5e-324, 1.7976931348623157e308]},
        "channel_id": "к" * 256,
    },
    agent="\U0010ffff",
)
@given(body=bodies, agent=texts.map("agent:{}".format) | st.just("agent:sofia"))
async def test_an_accepted_memory_is_returned_by_every_way_of_reading(memory: Memory, body, agent):
    microdao = f"microdao:{next(TENANTS)}"
    tenant = {"agent_id": agent, "microdao_id": microdao}
    stored = await memory.client.post("/store", content=json.dumps({**body, **tenant}).encode())
    assert stored.status_code in {200, 400}, stored.text
    if stored.status_code == 400:
        return
    listed = succeeded(await memory.client.get("/items", params=tenant))["items"]
    assert [item["id"] for item in listed] == [stored.json()["id"]]
    meta = body.get("meta") or {}
    if not isinstance(meta.get(MEMORY_META), dict):
        assert {key: listed[0]["meta"][key] for key in meta} == meta
    found = succeeded(
        await memory.post(
            "/query", {**tenant, "query": listed[0]["content"][:8_000], "explain": True}
        )
    )
    assert "degraded" not in found
    assert [item["meta"] for item in found["items"]] == [
        {**listed[0]["meta"], **_tier(found["items"][0], meta)}
    ]
    exported = (await memory.client.get("/export", params=tenant)).content
    assert json.loads(exported.splitlines()[-1]) == {"type": "end", "count": 1}
    assert json.loads(exported.splitlines()[0])["content"] == body["content"]
    other = {"agent_id": "agent:other", "microdao_id": microdao}
    assert (
        succeeded(await memory.client.post("/import", params=other, content=exported))["imported"]
        == 1
    )
    again = succeeded(await memory.client.get("/items", params=other))["items"]
    assert [(item["content"], item["kind"]) for item in again] == [
        (item["content"], item["kind"]) for item in listed
    ]
    assert (await memory.client.get("/export", params=other)).content == exported


def _tier(item, meta):
    """A listing calls a memory mid-term, a query calls the newest ones short-term."""
    return {} if MEMORY_META in meta else {MEMORY_META: item["meta"][MEMORY_META]}
