"""Tool calls as upstreams fragment them, joined as the official client joins them."""

import contextlib
import json
import time

import pytest
from openai.lib.streaming._deltas import accumulate_delta

from contracts.errors import UpstreamInvalidResponse
from providers.tool_fragments import MAX_NAME_CHARS, MAX_TOOL_CALLS, ToolFragments, parse_tool_calls

PARIS, KYIV = '{"city": "Paris"}', '{"city": "Київ"}'


def one(index="absent", call_id="absent", name="absent", arguments="absent", **more):
    function = {
        key: value for key, value in (("name", name), ("arguments", arguments)) if value != "absent"
    }
    named = {key: value for key, value in (("index", index), ("id", call_id)) if value != "absent"}
    return {**named, "function": function, **more}


def joined(*fragments):
    """Returns [(name, arguments)] as the official client joins them; ids must differ."""
    tools, whole = ToolFragments(), {}
    deltas = [tools.feed([fragment]) for fragment in fragments]
    for delta in [*deltas, tools.without_arguments()]:
        for fragment in delta:
            assert type(fragment["index"]) is int
            assert type(fragment["function"]["arguments"]) is str
        whole = accumulate_delta(whole, {"tool_calls": delta}) if delta else whole
    calls = whole.get("tool_calls", [])
    assert all(call["id"] and call["type"] == "function" for call in calls)
    assert len({call["id"] for call in calls}) == len(calls)
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


TWO = [("a", PARIS), ("b", KYIV)]


@pytest.mark.parametrize(
    ("fragments", "calls"),
    [
        (
            [
                one(0, "x", "a", ""),
                one(0, arguments='{"city": '),
                one(0, arguments='"Paris"}'),
                one(1, "y", "b", KYIV),
            ],
            TWO,
        ),
        (
            [
                one(call_id="x", name="a", arguments=PARIS),
                one(call_id="y", name="b", arguments=KYIV),
            ],
            TWO,
        ),
        (
            [
                one(call_id="x", name="a", arguments=""),
                one(arguments=PARIS),
                one(call_id="y", name="b"),
                one(arguments=KYIV),
            ],
            TWO,
        ),
        ([one(name="a", arguments=PARIS), one(name="b", arguments=KYIV)], TWO),
        ([one(name="a", arguments=PARIS), one(name="a", arguments=PARIS)], [TWO[0], TWO[0]]),
        ([one(0, "", "a", PARIS), one(0, "", "b", KYIV)], TWO),
        ([one(0, "x", "a", PARIS), one(0, "y", "b", KYIV)], TWO),
        (
            [
                one(0, "x", "a", ""),
                one(0, arguments=PARIS),
                one(0, "y", "b", ""),
                one(0, arguments=KYIV),
            ],
            TWO,
        ),
        ([one(0, "x", "a", PARIS), one(0, "x2", "a", PARIS)], [TWO[0], TWO[0]]),
        ([one(1, "x", "a", PARIS), one(3, "y", "b", ""), one(3, arguments=KYIV)], TWO),
        ([one("0", "x", "a", ""), one("0", arguments=PARIS), one(1.0, "y", "b", KYIV)], TWO),
        ([one(None, "x", "a", PARIS), one(None, "y", "b", KYIV)], TWO),
        (
            [one(0, "x", "a", '{"city":'), one(0, "x", "a", ' "Paris"}'), one(1, "y", "b", KYIV)],
            TWO,
        ),
        (
            [
                one(0, "x1", "a", ""),
                one(0, "x2", None, '{"city":'),
                one(0, "x3", arguments=' "Paris"}'),
                one(1, "y", "b", KYIV),
            ],
            TWO,
        ),
        ([one(0, None, "a", ""), one(0, "x", arguments=PARIS), one(1, 7, "b", KYIV, type="")], TWO),
        (
            [one(0, "x", "a", {"city": "Paris"}), one(1, "y", "b", None), one(1, arguments=KYIV)],
            [("a", '{"city":"Paris"}'), TWO[1]],
        ),
        (
            [
                one(0, "x", "a", {}),
                one(0, arguments=PARIS),
                one(1, "y", "b", KYIV),
                one(1, "y", "b", ""),
            ],
            TWO,
        ),
        (
            [one(0, "x", "a", ""), one(1, "y", "b"), one(2, "z", "c", " "), one(2, "z", "c", None)],
            [("a", "{}"), ("b", "{}"), ("c", " {}")],
        ),
        ([one(0, "same", "a", PARIS), one(1, "same", "b", KYIV)], TWO),
        (
            [one(0, "x", "get_", ""), one(0, name="weather"), one(0, arguments=PARIS)],
            [("get_weather", PARIS)],
        ),
        ([{"index": 0, "id": "x", "name": "a", "arguments": PARIS}, one(1, "y", "b", KYIV)], TWO),
        ([one(0, "x", "a", PARIS), one(0, "x", "a", PARIS), one(1, "y", "b", KYIV)], TWO),
        ([one(0, "x", "a", PARIS), one(0, "x", arguments=PARIS), one(1, "y", "b", KYIV)], TWO),
        ([one(None, "x", "a", PARIS), one(None, "x", "a", PARIS), one(None, "y", "b", KYIV)], TWO),
        (
            [
                one(0, "x", "a", '{"city": '),
                one(0, "x", "a", '"Paris"}'),
                one(0, "x", "a", PARIS),
                one(1, "y", "b", KYIV),
            ],
            TWO,
        ),
        ([one(0, "a", "a", PARIS), one(0, "a", "a", KYIV)], [TWO[0], ("a", KYIV)]),
        (
            [
                one(0, None, "a", '["{\\'),
                one(0, None, "a", '"", {}'),
                one(0, None, "a", "]"),
                one(1, "y", "b", KYIV),
            ],
            [("a", '["{\\"", {}]'), TWO[1]],
        ),
    ],
)
def test_fragments(fragments, calls):
    found = joined(*fragments)
    assert found == calls
    assert all(json.loads(arguments) is not None for _, arguments in found)


def test_a_well_formed_fragment_passes_unchanged():
    tools, piece = ToolFragments(), one(0, arguments='{"city')
    tools.feed([one(0, "x", "a", "")])
    assert tools.feed([piece])[0] is piece


def test_unreadable_fragments_are_counted():
    tools = ToolFragments()
    assert tools.feed(["text", None, 7]) == []
    assert (tools.unreadable, tools.feed("text"), tools.unreadable) == (3, [], 4)
    assert tools.feed(one(0, "x", "a", PARIS))[0]["id"] == "x", "a single one need not be in a list"


def test_the_number_of_calls_is_bounded():
    tools = ToolFragments()
    with pytest.raises(UpstreamInvalidResponse):
        tools.feed([one(index, f"c{index}", "a", PARIS) for index in range(MAX_TOOL_CALLS + 1)])


@pytest.mark.parametrize("piece", ['{"a": ', "}{}{}{", " ", '"a"', "{", "\\"])
def test_the_cost_of_a_name_in_each_fragment_grows_with_their_number_alone(piece):
    tools, fragment = ToolFragments(), one(0, "x", "a", piece)
    begun = time.process_time()
    with contextlib.suppress(
        UpstreamInvalidResponse
    ):  # where each piece is a call by itself, there are soon too many
        for _ in range(20_000):
            tools.feed([fragment])
    assert time.process_time() - begun < 5, (
        "it takes 0.1 s; with the square of their number it took minutes"
    )


def test_the_length_of_a_name_is_bounded():
    tools, pieces = ToolFragments(), [one(0, "x", "ab"), one(0, "x", "c")]
    with pytest.raises(UpstreamInvalidResponse):
        tools.feed(pieces * MAX_NAME_CHARS)


def test_a_thoughts_signature_stays_with_its_call():
    signed = {"extra_content": {"google": {"thought_signature": "abc"}}}
    assert (
        ToolFragments().feed([one(name="a", arguments=PARIS, **signed)])[0]["extra_content"]
        == signed["extra_content"]
    )
    assert (
        parse_tool_calls([one(name="a", arguments=PARIS, **signed)])[0]["extra_content"]
        == signed["extra_content"]
    )


@pytest.mark.parametrize("arguments", [PARIS, {"city": "Paris"}])
def test_whole_calls_have_ids_that_differ(arguments):
    calls = parse_tool_calls(
        [one(call_id=given, name="a", arguments=arguments) for given in (None, "", "x", "x", 7)]
    )
    assert len({call["id"] for call in calls}) == 5
    assert calls[2]["id"] == "x"
    assert calls[4]["id"] == "7"
    assert all(json.loads(call["function"]["arguments"]) == {"city": "Paris"} for call in calls)


@pytest.mark.parametrize(
    "value", ["text", [None], [{"id": "x"}], [{"function": "a"}], [{"function": {"name": ""}}], [7]]
)
def test_whole_calls_without_a_name_are_malformed(value):
    with pytest.raises(UpstreamInvalidResponse):
        parse_tool_calls(value)
