import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from common.circuit import Circuit, CircuitPolicy
from configs.llm.failover import DEFAULT_CIRCUIT
from contracts.llm.routing import Target, Timeouts
from services.llm.attempts import Circuits

POLICY = CircuitPolicy(failures=3, share=0.5, calls=10, window_s=10, cooldown_s=2, max_cooldown_s=7)


def fail(circuit, now, times=1):
    for _ in range(times):
        circuit.enter(now).failed(now)


def test_failures_in_a_row_open_it_and_one_probe_closes_it():
    circuit = Circuit(POLICY)
    fail(circuit, 0, 2)
    circuit.enter(0).succeeded(0)
    fail(circuit, 0, 2)
    assert circuit.state(0) == "closed", "a success in between starts the count anew"
    fail(circuit, 0)
    assert (circuit.state(0), circuit.enter(1.9), circuit.wait_s(0.5)) == ("open", None, 1.5)
    assert circuit.state(2) == "half_open"
    probe = circuit.enter(2)
    assert (circuit.enter(2), circuit.wait_s(2)) == (None, 1.0), "one call alone probes"
    probe.succeeded(3)
    assert (circuit.state(3), circuit.wait_s(3)) == ("closed", 0)


def test_a_share_of_failures_opens_it():
    circuit = Circuit(POLICY)
    for _ in range(5):
        circuit.enter(0).succeeded(0)
        fail(circuit, 0)
    assert circuit.state(0) == "open"
    slow = Circuit(POLICY)
    for moment in range(0, 200, 4):  # as many failures, but never ten calls within the window
        slow.enter(moment).succeeded(moment)
        fail(slow, moment)
    assert slow.state(200) == "closed"


def test_vain_probes_come_less_and_less_often_up_to_a_bound():
    circuit, now, waits = Circuit(POLICY), 0.0, []
    fail(circuit, now, 3)
    for _ in range(5):
        waits.append(circuit.wait_s(now))
        now += circuit.wait_s(now)
        fail(circuit, now)
    assert waits == [2, 4, 7, 7, 7]
    now += 7
    circuit.enter(now).succeeded(now)
    fail(circuit, now + 1, 3)
    assert circuit.wait_s(now + 1) == 7, "it flaps: the cool-down goes on where it was"
    now += 8
    circuit.enter(now).succeeded(now)
    fail(circuit, now + 11, 3)
    assert circuit.wait_s(now + 11) == 2, "it had been well for longer than the window"


DEFAULTS = CircuitPolicy(**DEFAULT_CIRCUIT.model_dump())


@pytest.mark.parametrize(
    "fails_after_s", [0.0, 7.0, 12.0, 60.0], ids=["refused", "slow", "silent", "hung"]
)
@pytest.mark.parametrize("outage_s", [60.0, 61.5, 64.0, 67.0, 600.0])
def test_by_default_a_provider_that_recovered_is_called_within_ten_seconds(outage_s, fails_after_s):
    assert CircuitPolicy() == DEFAULTS
    circuit, now, pending = (
        Circuit(DEFAULTS),
        0.0,
        [],
    )  # of each call under way: when it fails, its permit
    while circuit.state(now) != "closed" or now < outage_s:
        assert now < outage_s + 10
        for end in [end for end in pending if end[0] <= now]:
            pending.remove(end)
            end[1].failed(now)
        if (permit := circuit.enter(now)) is not None:
            if now >= outage_s:
                permit.succeeded(now)
            else:
                pending.append((now + fails_after_s, permit))
        now += 0.25


def test_a_cancelled_probe_frees_the_circuit_for_another():
    circuit = Circuit(POLICY)
    fail(circuit, 0, 3)
    circuit.enter(2).released(2.5)
    assert circuit.state(2.5) == "half_open"
    assert circuit.enter(2.5) is not None


def test_a_probe_without_an_end_does_not_keep_the_others_out_for_ever():
    circuit = Circuit(POLICY)
    fail(circuit, 0, 3)
    hung = circuit.enter(2)
    assert circuit.enter(2 + 6.9) is None
    probe = circuit.enter(2 + 7)
    assert (probe is not None, circuit.enter(2 + 7)) == (True, None)
    hung.succeeded(10)
    assert circuit.state(10) == "closed", "whichever answers first"
    probe.failed(11)
    assert circuit.state(11) == "closed", "too late to say anything"


def test_a_probe_that_answers_closes_it_before_its_end():
    circuit = Circuit(POLICY)
    fail(circuit, 0, 3)
    probe = circuit.enter(2)
    probe.alive(2.1)
    assert circuit.state(2.1) == "closed"
    assert circuit.enter(2.1) is not None
    fail(circuit, 3, 2)
    probe.failed(3)
    assert circuit.state(3) == "open", "what becomes of the probe counts like any call"


def test_calls_begun_before_the_circuit_opened_do_not_count_afterwards():
    circuit = Circuit(POLICY)
    late = [circuit.enter(0) for _ in range(4)]
    fail(circuit, 1, 3)
    late[0].succeeded(1.5)
    assert circuit.state(1.5) == "open"
    late[1].failed(1.6)
    assert circuit.wait_s(1.6) == 1 + 2 - 1.6
    probe = circuit.enter(3)
    late[2].succeeded(3.1)
    assert circuit.state(3.1) == "half_open"
    probe.failed(3.2)
    late[3].succeeded(3.3)
    assert circuit.state(3.3) == "open"


def test_a_rest_that_the_provider_asked_for_needs_no_probe():
    circuit = Circuit(POLICY)
    circuit.pause_until(5)
    circuit.pause_until(1)
    assert (circuit.enter(4.9), circuit.wait_s(1), circuit.state(1)) == (None, 4, "closed")
    assert all([circuit.enter(5), circuit.enter(5)])


def test_circuits_are_kept_by_provider_and_model():
    calm, hard = (
        Target("a", "m", Timeouts(1, 1, 1, 1), circuit=CircuitPolicy(failures=count))
        for count in (9, 1)
    )
    circuits = Circuits()
    circuits.of(calm).pause_until(math.inf)
    assert circuits.of(hard).enter(0) is None, (
        "another entry for the same model meets the same circuit"
    )
    assert circuits.of(hard).policy.failures == 1
    circuits.keep([])
    assert circuits.of(calm).enter(0) is not None


class Machine(RuleBasedStateMachine):
    """In any order of events: at most one probe, none too early, and it can always close again."""

    def __init__(self):
        super().__init__()
        self.circuit, self.now, self.held, self.probes = Circuit(POLICY), 0.0, [], {}

    @rule(seconds=st.sampled_from([0.0, 0.5, 2.0, 7.0, 30.0]))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    def enter(self):
        before = self.circuit.state(self.now)
        permit = self.circuit.enter(self.now)
        assert permit is None or before != "open"
        if permit is not None:
            self.held.append(permit)
            if before == "half_open":
                assert all(
                    self.now - since >= POLICY.max_cooldown_s for since in self.probes.values()
                )
                self.probes[permit] = self.now

    @precondition(lambda self: self.held)
    @rule(data=st.data(), ending=st.sampled_from(["succeeded", "failed", "released", "alive"]))
    def end(self, data, ending):
        permit = data.draw(st.sampled_from(self.held))
        getattr(permit, ending)(self.now)
        if ending != "alive":
            self.held.remove(permit)
            permit.failed(self.now)  # a second ending says nothing
        self.probes.pop(permit, None)
        if self.circuit.state(self.now) != "half_open":
            self.probes.clear()

    @rule(seconds=st.floats(0, 20))
    def rest(self, seconds):
        self.circuit.pause_until(self.now + seconds)

    @invariant()
    def holds(self):
        assert self.circuit.in_flight == len(self.held)
        assert self.circuit.wait_s(self.now) <= max(POLICY.max_cooldown_s, 20)
        assert (self.circuit.wait_s(self.now) == 0) or self.circuit.enter(self.now) is None


TestCircuit = Machine.TestCase


@given(st.lists(st.booleans(), max_size=200))
def test_it_is_open_only_after_enough_failures(endings):
    circuit = Circuit(POLICY)
    for count, failed in enumerate(endings):
        permit = circuit.enter(0)
        permit.failed(0) if failed else permit.succeeded(0)
        seen = endings[: count + 1]
        if circuit.state(0) == "open":
            assert seen[-3:] == [True] * 3 or (len(seen) >= 10 and 2 * sum(seen) >= len(seen))
            return
