"""The lease book against its one promise: in no window are more units spent than the limit allows."""

from hypothesis import given, settings
from hypothesis import strategies as st

from services.llm_proxy.leases import LEASE_TTL_S, SETTLE_GRACE_S, LeaseBook, Settlement, lease_size

WINDOW = 60.0

steps = st.lists(
    st.tuples(
        st.integers(0, 2),  # which replica
        st.floats(0, 8),  # seconds that pass before
        st.integers(1, 50),  # units wanted
        st.floats(0, 1),  # share of the former lease that was spent
        st.booleans(),  # whether the former lease is settled, or its replica died
    ),
    max_size=120,
)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 200), steps)
def test_no_window_ever_holds_more_than_the_limit(limit, moves):
    book, now, held, spent = LeaseBook(WINDOW), 0.0, {}, []
    for replica, pause, want, share, settles in moves:
        now += pause
        settled = None
        if replica in held:
            lease_id, units, granted = held.pop(replica)
            used = round(units * share)
            # A replica may spend until its lease expires, so the latest moment is the worst case.
            moment = min(now, granted + LEASE_TTL_S)
            spent += [moment] * (used if settles else units)
            settled = Settlement(lease_id, units - used) if settles and now < granted + LEASE_TTL_S + SETTLE_GRACE_S else None
        grant = book.lease("k", limit, want, now, settled)
        assert 0 <= grant.units <= want
        if grant.units:
            held[replica] = (grant.lease_id, grant.units, now)
        outstanding = [now] * sum(units for _, units, granted in held.values())
        in_window = [moment for moment in spent + outstanding if moment > now - WINDOW]
        assert len(in_window) <= limit


@given(st.integers(1, 10**9), st.integers(0, 10**9))
def test_a_lease_is_never_more_than_is_left_and_never_nothing_while_something_is(limit, left):
    size = lease_size(limit, left)
    assert (size == 0) == (left == 0)
    assert size <= left
    assert size <= -(-limit // 60)


def test_an_exhausted_limit_says_when_units_come_back_and_they_do():
    book = LeaseBook(WINDOW)
    grants = [book.lease("k", 3, 1, now=0.1 * index) for index in range(3)]
    assert [grant.units for grant in grants] == [1, 1, 1]
    refused = book.lease("k", 3, 1, now=1.0)
    assert refused.units == 0
    assert 0 < refused.retry_after_s <= WINDOW
    for index, grant in enumerate(grants):
        book.lease("other", 1, 1, now=1.0)
        book.lease("k", 3, 1, now=1.0 + index / 100, settled=Settlement(grant.lease_id, 0))
    assert book.lease("k", 3, 1, now=1.5).units == 0
    assert book.lease("k", 3, 1, now=61.2).units == 1


def test_unused_units_come_back_with_the_settlement():
    book = LeaseBook(WINDOW)
    first = book.lease("k", 60, 7, now=0.0)
    assert first.units == 1
    second = book.lease("k", 60, 7, now=0.1, settled=Settlement(first.lease_id, 1))
    assert second.left == 59


def test_a_dead_replicas_lease_counts_as_spent():
    book = LeaseBook(WINDOW)
    book.lease("k", 1, 1, now=0.0)
    assert book.lease("k", 1, 1, now=30.0).units == 0
    assert book.lease("k", 1, 1, now=64.0).units == 1


def test_steady_demand_gets_nearly_the_whole_limit_minute_after_minute():
    book, now, settled, spent = LeaseBook(WINDOW), 0.0, None, []
    while now < 300:
        grant = book.lease("k", 600, 5, now, settled)
        spent += [now] * grant.units
        settled = Settlement(grant.lease_id, 0) if grant.units else None
        now += 0.05
    last_window = [moment for moment in spent if moment > now - WINDOW]
    assert 590 <= len(last_window) <= 600
