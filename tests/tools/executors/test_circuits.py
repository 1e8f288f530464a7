"""The circuits of tool targets, without a server."""

from executors.http.target_circuit import MAX_CIRCUITS, POLICY, ToolTargetCircuits


def test_a_circuit_opens_probes_once_and_closes():
    circuits, pause_s = ToolTargetCircuits(), POLICY.cooldown_s
    circuit = circuits["t"]
    for _ in range(POLICY.failures):
        circuit.enter(0).failed(0)
    assert (circuit.enter(0), circuit.wait_s(0)) == (None, pause_s)
    assert circuits["other"].enter(0) is not None
    now = pause_s
    probe = circuit.enter(now)
    assert circuit.enter(now) is None, "one probe at a time"
    probe.failed(now)
    assert (circuit.enter(now), circuit.wait_s(now)) == (None, 2 * pause_s)
    now += 2 * pause_s
    circuit.enter(now).released(now)  # the probe was cancelled: the next caller probes
    circuit.enter(now).succeeded(now)
    circuit.enter(now).failed(now)
    assert circuit.enter(now) is not None


def test_failures_among_successes_leave_it_closed():
    circuit = ToolTargetCircuits()["t"]
    for _ in range(50):
        for _ in range(POLICY.failures - 1):
            circuit.enter(0).failed(0)
        circuit.enter(0).succeeded(0)
    assert circuit.state(0) == "closed"


def test_a_pause_is_at_most_a_minute():
    circuit, now = ToolTargetCircuits()["t"], 0.0
    for _ in range(POLICY.failures):
        circuit.enter(now).failed(now)
    for _ in range(10):
        now += circuit.wait_s(now)
        circuit.enter(now).failed(now)
    assert circuit.wait_s(now) == 60


def test_the_number_of_circuits_is_bounded():
    circuits = ToolTargetCircuits()
    first = circuits["0"]
    for number in range(MAX_CIRCUITS):
        assert circuits["0"] is first
        circuits[str(number)]
    circuits["one too many"]
    assert len(circuits) == MAX_CIRCUITS
    assert circuits["0"] is first, "the least recently used went"
