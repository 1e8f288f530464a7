"""Whatever an upstream streams or answers is a delta, an answer or a leaf of the error tree."""

import contextlib

import orjson
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import DaarionError
from providers.shapes import StreamParser, parse_completion
from providers.tool_fragments import ToolFragments

_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats(allow_nan=False)
    | st.text(max_size=6)
)
_KEYS = st.sampled_from(
    [
        "choices",
        "delta",
        "message",
        "content",
        "tool_calls",
        "function",
        "name",
        "arguments",
        "id",
        "index",
        "type",
        "usage",
        "error",
        "code",
        "finish_reason",
        "prompt_tokens",
        "completion_tokens",
        "total_tokens",
        "prompt_tokens_details",
        "cached_tokens",
        "detail",
        "object",
    ]
)
_JSON = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=5),
    max_leaves=12,
)
_FRAGMENTS = st.fixed_dictionaries(
    {},
    optional={
        "index": st.integers(-1, 3) | _SCALARS,
        "id": st.sampled_from(["a", "b", ""]) | _SCALARS,
        "type": _SCALARS,
        "function": st.fixed_dictionaries(
            {},
            optional={
                "name": st.sampled_from(["f", "g", ""]) | _SCALARS,
                "arguments": st.sampled_from(["", "{", "}", "{}", '{"a": 1}']) | _JSON,
            },
        )
        | _JSON,
    },
)
_CHUNKS = st.fixed_dictionaries(
    {
        "choices": st.lists(
            st.fixed_dictionaries(
                {
                    "delta": st.fixed_dictionaries(
                        {"tool_calls": st.lists(_FRAGMENTS, max_size=3) | _JSON}
                    )
                }
            )
        )
    }
)


@given(st.lists(_JSON | _CHUNKS, max_size=6))
def test_any_stream_gives_items_that_can_be_sent_on(chunks):
    parser = StreamParser()
    with contextlib.suppress(DaarionError):
        for chunk in chunks:
            delta = parser.feed(chunk)
            assert delta is None or orjson.dumps(delta.model_dump())
        last = parser.last_delta()
        assert last is None or orjson.dumps(last.model_dump())
    assert parser.final_usage().total_tokens >= 0


@given(
    _JSON | st.fixed_dictionaries({"choices": st.lists(st.fixed_dictionaries({"message": _JSON}))})
)
def test_an_answer_of_anything_is_an_answer_or_a_leaf(payload):
    with contextlib.suppress(DaarionError):
        assert parse_completion(payload).usage.total_tokens >= 0


@given(st.lists(st.lists(_FRAGMENTS, max_size=3), max_size=6))
def test_fragments_leave_in_one_form(deltas):
    tools, begun = ToolFragments(), {}
    for fragment in [
        one for delta in deltas for one in tools.feed(delta)
    ] + tools.without_arguments():
        assert type(fragment["index"]) is int
        assert type(fragment["function"]["arguments"]) is str
        if fragment["index"] in begun:
            assert "id" not in fragment
        else:
            assert fragment["index"] == len(begun), "calls are counted from zero, in their order"
            assert fragment["type"] == "function"
            assert fragment["id"]
            assert fragment["id"] not in begun.values()
            begun[fragment["index"]] = fragment["id"]
