"""Circuit, redaction, result parsing and Retry-After, without a server."""

import base64

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.tools.api import MAX_NAME, TOOL_ID, plain_name
from executors.http.answers import MAX_REASON_CHARS, describe
from executors.http.target_circuit import FIRST_PAUSE_S, MAX_CIRCUITS, THRESHOLD, ToolTargetCircuits
from executors.mcp.source import tool_id_in
from executors.redaction import Redactor
from executors.results import MAX_DEPTH, InvalidResult, parse_result

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=20,
)
SECRET = "s3cr3t-κλειδί-value"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_circuit_opens_probes_once_and_closes():
    clock = Clock()
    circuits = ToolTargetCircuits(clock)
    for _ in range(THRESHOLD):
        assert circuits.refused_for_s("t") is None
        circuits.report("t", failed=True)
    assert circuits.refused_for_s("t") == pytest.approx(FIRST_PAUSE_S)
    assert circuits.refused_for_s("other") is None
    clock.now += FIRST_PAUSE_S
    assert circuits.refused_for_s("t") is None
    assert circuits.refused_for_s("t") is not None  # one probe at a time
    circuits.report("t", failed=True)
    assert circuits.refused_for_s("t") == pytest.approx(2 * FIRST_PAUSE_S)
    clock.now += 2 * FIRST_PAUSE_S
    assert circuits.refused_for_s("t") is None
    circuits.forget("t")  # the probe was cancelled: the next caller probes
    assert circuits.refused_for_s("t") is None
    circuits.report("t", failed=False)
    assert circuits.refused_for_s("t") is None
    circuits.report("t", failed=True)
    assert circuits.refused_for_s("t") is None


def test_the_number_of_circuits_is_bounded():
    circuits = ToolTargetCircuits()
    for number in range(MAX_CIRCUITS + 50):
        circuits.report(str(number), failed=True)
    assert len(circuits._circuits) == MAX_CIRCUITS


@given(json_values, st.sampled_from(["plain", "base64", "inside"]))
def test_no_form_of_a_secret_survives_redaction(value, form):
    shown = {
        "plain": SECRET,
        "base64": base64.b64encode(SECRET.encode()).decode(),
        "inside": f"key={SECRET}!",
    }[form]
    cleaned = Redactor([SECRET]).json({shown: [value, {"a": shown}], "b": shown})
    assert shown not in orjson.dumps(cleaned).decode()
    assert SECRET not in str(cleaned)


@given(json_values)
def test_redaction_does_not_change_other_values(value):
    assert Redactor([SECRET]).json(orjson.loads(orjson.dumps(value))) == value
    assert Redactor([]).json(value) is value


@given(json_values)
def test_valid_json_is_parsed(value):
    assert parse_result(orjson.dumps(value)) == value


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"  ",
        b"{'a': 1}",
        b"NaN",
        b"[1",
        b'"\xff"',
        b"[" * 2000 + b"]" * 2000,
        b"[" * 65 + b"]" * 65,
    ],
)
def test_invalid_and_too_deep_json_is_refused(raw):
    with pytest.raises(InvalidResult):
        parse_result(raw)


def test_the_depth_bound_is_exact():
    assert parse_result(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    wide = b"[" + b",".join([b"{}"] * 500) + b"]"
    assert len(parse_result(wide)) == 500


def test_only_verdicts_on_the_call_are_quoted():
    assert (
        describe(422, b'{"error": {"message": "too\\n late"}}', str)
        == "the tool's server answered HTTP 422: too late"
    )
    assert describe(500, b'{"error": "password=x"}', str) == "the tool's server answered HTTP 500"
    assert describe(404, b"<html>", str) == "the tool's server answered HTTP 404"
    assert "redirect" in describe(302, b"", str)


@given(st.text(max_size=200), st.text(max_size=200))
def test_ids_of_outside_tools_depend_on_their_names_alone_and_differ(one, two):
    assert TOOL_ID.fullmatch(tool_id_in("outside", one))
    assert len(plain_name(tool_id_in("outside", one))) <= MAX_NAME
    assert (tool_id_in("outside", one) == tool_id_in("outside", two)) is (one == two)


def test_a_secret_at_the_cut_of_a_reason_is_taken_out_whole():
    body = b'{"error": "' + b"x" * (MAX_REASON_CHARS - 5) + SECRET.encode() + b'"}'
    assert SECRET[:3] not in describe(422, body, Redactor([SECRET]).text)
