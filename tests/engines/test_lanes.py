import asyncio
import time
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.engines.embedder import PassSettings, QueueSettings
from contracts.errors import Overloaded
from deployments.engines.lanes import FairLanes, Waiting


def text(
    name: str,
    kind: str = "query",
    tenant: str = "microdao:1",
    *,
    cost: int = 10,
    seconds: float = 60,
) -> Waiting:
    return Waiting(
        name,
        kind,
        tenant,
        cost,
        time.monotonic() + seconds,
        asyncio.get_running_loop().create_future(),
    )


def lanes(batch_texts: int = 4, batch_tokens: int = 100, **queue: float) -> FairLanes:
    return FairLanes(
        PassSettings(max_texts=batch_texts, max_tokens=batch_tokens), QueueSettings(**queue)
    )


def names(batch: list[Waiting]) -> list[str]:
    return [item.text for item in batch]


async def test_queries_go_before_passages_that_came_first():
    queue = lanes()
    queue.put([text("p1", "passage"), text("p2", "passage")])
    queue.put([text("q1"), text("q2")])
    assert names(queue.next_batch()) == ["q1", "q2"]
    assert names(queue.next_batch()) == ["p1", "p2"]
    assert queue.next_batch() == []


async def test_tenants_take_turns_inside_a_lane():
    queue = lanes(batch_texts=4)
    queue.put([text(f"a{index}", tenant="a") for index in range(6)])
    queue.put([text("b0", tenant="b")])
    queue.put([text(f"c{index}", tenant="c") for index in range(2)])
    assert names(queue.next_batch()) == ["a0", "b0", "c0", "a1"]
    assert names(queue.next_batch()) == ["c1", "a2", "a3", "a4"]


async def test_batch_is_bounded_by_tokens_but_takes_one_long_text():
    queue = lanes(batch_tokens=100)
    queue.put([text("long", cost=400), text("short", cost=60), text("next", cost=60)])
    assert [names(queue.next_batch()) for _ in range(3)] == [["long"], ["short"], ["next"]]


async def test_steady_queries_leave_passages_their_share():
    queue = lanes(batch_texts=8, batch_tokens=80, passage_share=0.25)
    queue.put([text(f"p{index}", "passage") for index in range(400)])
    worked = {"query": 0, "passage": 0}
    for index in range(100):
        for number in range(8):
            queue.put([text(f"q{index}-{number}", tenant=f"t{number}")])
        batch = queue.next_batch()
        worked[batch[0].kind] += sum(item.cost for item in batch)
    assert worked["passage"] / sum(worked.values()) == pytest.approx(0.25, abs=0.03)


async def test_a_tenant_over_its_share_is_refused_and_others_are_not():
    queue = lanes(max_texts_per_tenant=512, max_texts=1_024)
    queue.put([text(f"a{index}", tenant="a") for index in range(512)])
    with pytest.raises(Overloaded, match="this tenant"):
        queue.put([text("one more", tenant="a")])
    queue.put([text(f"b{index}", tenant="b") for index in range(512)])
    with pytest.raises(Overloaded, match="too many texts wait"):
        queue.put([text("c", tenant="c")])


async def test_a_call_is_queued_whole_or_not_at_all():
    queue = lanes(max_texts_per_tenant=512, max_texts=1_024)
    queue.put([text(f"a{index}") for index in range(510)])
    with pytest.raises(Overloaded):
        queue.put([text("x"), text("y"), text("z")])
    assert queue.waiting == 510


async def test_expired_and_cancelled_texts_are_dropped():
    queue = lanes()
    expired, cancelled = text("expired", seconds=-1), text("cancelled")
    queue.put([expired, cancelled, text("wanted")])
    cancelled.answer.cancel()
    assert names(queue.next_batch()) == ["wanted"]
    assert queue.waiting == 0


async def test_forgotten_texts_free_the_tenants_share():
    queue = lanes(max_texts_per_tenant=512, max_texts=1_024)
    gone = [text(f"a{index}", "passage") for index in range(512)]
    queue.put(gone)
    queue.forget(gone)
    assert queue.waiting == 0
    queue.put([text("again")])
    assert names(queue.next_batch()) == ["again"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["query", "passage"]), st.sampled_from("abc"), st.integers(1, 120)
        ),
        max_size=60,
    )
)
def test_every_text_comes_out_once_in_its_tenants_order(arrivals):
    async def check() -> None:
        queue = lanes(batch_texts=5, batch_tokens=100)
        for number, (kind, tenant, cost) in enumerate(arrivals):
            queue.put([text(str(number), kind, tenant, cost=cost)])
        out: list[Waiting] = []
        while batch := queue.next_batch():
            assert len({item.kind for item in batch}) == 1
            assert len(batch) == 1 or sum(item.cost for item in batch) <= 100
            out.extend(batch)
        assert sorted(int(item.text) for item in out) == list(range(len(arrivals)))
        key = lambda item: (item.kind, item.tenant)  # noqa: E731
        for _, group in groupby(sorted(out, key=key), key):
            order = [int(item.text) for item in group]
            assert order == sorted(order)
        assert queue.waiting == 0

    asyncio.run(check())
