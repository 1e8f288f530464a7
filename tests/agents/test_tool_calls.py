"""Which tools an answer asks for: the three forms, their order, and what is no call."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.llm.answers import ProxyResponse, TokenUsage
from services.agents.tool_calls import MAX_CALLS, Reading, WantedCall, read_answer, read_text

NAMES = st.from_regex(r"[a-z]{1,8}(\.[a-z]{1,8}){0,2}", fullmatch=True)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
ARGS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), JSON, max_size=4
)
PROSE = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="`~{}\r"), max_size=60
).map(lambda text: text.replace("TOOL:", "tool"))


def answer(content="", calls=None, finish_reason="stop"):
    tool_calls = [
        {"id": f"c{n}", "type": "function", "function": {"name": name, "arguments": args}}
        for n, (name, args) in enumerate(calls or [])
    ]
    return ProxyResponse(
        content=content,
        usage=TokenUsage(),
        provider="p",
        model_resolved="m",
        tool_calls=tool_calls or None,
        finish_reason=finish_reason,
    )


@given(PROSE, NAMES, ARGS, PROSE)
def test_a_line_is_one_call_and_the_rest_is_text(before, name, args, after):
    line = f"TOOL: {name} {json.dumps(args)}"
    reading = read_text(f"так\n{before}\n{line}\n\n{after}")
    assert reading.calls == (WantedCall(name, args),)
    assert "TOOL:" not in reading.text


@given(NAMES, ARGS)
def test_the_object_may_span_several_lines(name, args):
    reading = read_text(f"TOOL: {name} {json.dumps(args, indent=2)}\nдалі")
    assert reading.calls == (WantedCall(name, args),)
    assert reading.text == "далі"


@given(NAMES, ARGS, st.sampled_from(["```", "~~~", "````"]), st.sampled_from(["", "json", "text"]))
def test_nothing_inside_a_fence_is_a_call(name, args, fence, language):
    text = f"Приклад:\n{fence}{language}\nTOOL: {name} {json.dumps(args)}\n{fence}\nкінець"
    reading = read_text(text)
    assert reading.calls == ()
    assert reading.text == text


@given(NAMES, ARGS, st.sampled_from([" ", "> ", "- ", "a", "«", "\t", "*"]))
def test_nothing_but_the_start_of_a_line_is_a_call(name, args, before):
    assert read_text(f"так\n{before}TOOL: {name} {json.dumps(args)}").calls == ()


@given(
    NAMES,
    ARGS,
    st.sampled_from(["{}", "```json\n{}\n```", "```\n{}\n```", "  {}\n"]),
    st.sampled_from(["args", "arguments"]),
)
def test_a_whole_object_is_a_call(name, args, frame, key):
    body = frame.replace("{}", json.dumps({"tool": name, key: args}))
    assert read_text(body).calls == (WantedCall(name, args),)


@given(st.lists(st.tuples(NAMES, ARGS), min_size=1, max_size=5))
def test_a_list_of_calls_keeps_its_order(calls):
    listed = [{"name": name, "arguments": args} for name, args in calls]
    expected = tuple(WantedCall(name, args) for name, args in calls)
    assert read_text(json.dumps({"tool_calls": listed})).calls == expected
    texts = [{"function": {"name": name, "arguments": json.dumps(args)}} for name, args in calls]
    assert read_text(json.dumps({"tool_calls": texts})).calls == expected


@given(PROSE, NAMES, ARGS)
def test_an_object_inside_a_text_is_no_call(prose, name, args):
    assert read_text(f"Ось: {prose} {json.dumps({'tool': name, 'args': args})}").calls == ()


@given(st.text(max_size=300))
def test_any_text_is_read_without_failing(text):
    reading = read_text(text)
    assert len(reading.calls) <= MAX_CALLS
    if "TOOL:" not in text and "{" not in text:
        assert reading.calls == ()
        assert reading.text == text.replace("\r\n", "\n").strip()


@given(NAMES, ARGS, st.text(max_size=50))
def test_a_cut_off_answer_asks_for_nothing(name, args, text):
    for given_answer in (
        answer(f"{text}\nTOOL: {name} {json.dumps(args)}", finish_reason="length"),
        answer(json.dumps({"tool": name, "args": args}), finish_reason="length"),
        answer(calls=[(name, json.dumps(args))], finish_reason="length"),
    ):
        reading = read_answer(given_answer)
        assert reading.calls == ()
        assert reading.was_cut


def test_native_calls_go_first_and_names_are_mapped_back():
    reading = read_answer(
        answer(
            "TOOL: other.tool {}", [("projects__list", '{"limit": 1}'), ("followups__create", "")]
        )
    )
    assert [(call.tool_id, call.args, call.id) for call in reading.calls] == [
        ("projects.list", {"limit": 1}, "c0"),
        ("followups.create", {}, "c1"),
    ]
    assert reading.native


@pytest.mark.parametrize("arguments", ["[1]", "{", '"x"', "7", '{"a": 1} {"b": 2}', "{'a': 1}"])
def test_native_arguments_that_are_no_object_are_a_problem(arguments):
    (call,) = read_answer(answer(calls=[("projects__list", arguments)])).calls
    assert call.problem


@pytest.mark.parametrize("arguments", ["", " ", "null", "{}", '""'])
def test_no_arguments_are_an_empty_object(arguments):
    calls = [{"name": "projects.list", "arguments": arguments}]
    for reading in (
        read_answer(answer(calls=[("projects__list", arguments)])),
        read_text(json.dumps({"tool_calls": calls})),
        read_text(json.dumps({"tool": "projects.list", "args": arguments})),
        read_text(f"TOOL: projects.list {arguments}"),
    ):
        (call,) = reading.calls
        assert (call.tool_id, call.args, call.problem) == ("projects.list", {}, None)


@pytest.mark.parametrize(
    "text",
    [
        "TOOL: projects.list {",
        "TOOL: projects.list [1]",
        "TOOL: projects.list status=active",
        'TOOL: projects.list {"a": 1} {"b": 2}',
        "TOOL:",
        '{"tool": "projects.list", "args": ',
        '{"tool_calls": [1]}',
        '{"tool": "projects.list", "args": "no"}',
    ],
)
def test_text_that_looks_like_a_call_is_reported_as_a_problem(text):
    reading = read_text(text)
    assert reading.calls
    assert all(call.problem for call in reading.calls)


def test_a_reply_in_json_is_unwrapped_and_other_objects_are_text():
    assert read_text('{"reply": " Гаразд "}').text == "Гаразд"
    assert read_text('{"tool_calls": []}') == Reading()
    assert read_text('{"answer": 1}').text == '{"answer": 1}'
    assert read_text('{"answer": 1}').calls == ()


def test_many_calls_and_many_lines_are_bounded():
    assert len(read_text("TOOL: a {}\n" * 1_000).calls) == MAX_CALLS
    assert len(read_answer(answer(calls=[("a", "{}")] * 500)).calls) == MAX_CALLS
    assert read_text("TOOL: a {\n" + "x\n" * 200_000).calls[0].problem
