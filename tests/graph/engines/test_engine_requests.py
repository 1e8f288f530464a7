"""The engine's request after defaults and bounds, without a server."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, ValidationError, validate

from configs.engines.config import SamplingSettings, StructuredSettings
from contracts.errors import InvalidRequest
from deployments.engines.requests import engine_request, is_structured
from deployments.engines.schemas import bound_schema

HELLO = [{"role": "user", "content": "hello"}]
SAMPLING = SamplingSettings(temperature=0.0, max_tokens=512)
BOUNDS = StructuredSettings(max_string_length=20, max_items=3, repetition_penalty=1.15)
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {"type": "object", "properties": {"q": {"type": "string"}}},
    },
}


def made(*, stream=False, **body):
    return engine_request(
        {"messages": HELLO, **body},
        served_name="served",
        sampling=SAMPLING,
        structured=BOUNDS,
        stream=stream,
    )


def schema_format(schema):
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}


def test_defaults_fill_what_is_absent_or_null():
    request = made(model="anything", temperature=None, top_p=0.5)
    assert request == {
        "messages": HELLO,
        "model": "served",
        "stream": False,
        "temperature": 0.0,
        "max_tokens": 512,
        "top_p": 0.5,
    }


def test_values_of_the_caller_override_the_defaults():
    request = made(
        temperature=1.5,
        max_tokens=3,
        repetition_penalty=1.0,
        response_format=schema_format({"type": "string"}),
    )
    assert (request["temperature"], request["max_tokens"], request["repetition_penalty"]) == (
        1.5,
        3,
        1.0,
    )


def test_a_top_p_of_zero_is_one_that_the_engine_takes():
    assert 0 < made(top_p=0)["top_p"] < 0.001


def test_the_newer_name_of_max_tokens_is_no_second_limit():
    assert "max_tokens" not in made(max_completion_tokens=7)


@pytest.mark.parametrize(
    "field",
    [
        "chat_template",
        "n",
        "prompt_logprobs",
        "kv_transfer_params",
        "vllm_xargs",
        "use_beam_search",
        "whatever",
    ],
)
def test_fields_of_the_engines_own_dialect_are_not_passed_through(field):
    assert field not in made(**{field: 5})


def test_a_stream_ends_with_its_usage():
    assert made(stream=True)["stream_options"] == {
        "include_usage": True,
        "continuous_usage_stats": True,
    }
    assert "stream_options" not in made(stream_options={"include_usage": True})


@pytest.mark.parametrize("tools", [None, []])
def test_an_empty_list_of_tools_is_left_out(tools):
    assert made(tools=tools, tool_choice="auto", parallel_tool_calls=True) == made()


def test_a_forced_tool_without_tools_is_left_to_the_engine_to_refuse():
    assert made(tool_choice="required")["tool_choice"] == "required"


@pytest.mark.parametrize(
    ("options", "structured"),
    [
        ({"response_format": {"type": "json_object"}}, True),
        ({"response_format": schema_format({"type": "object"})}, True),
        ({"tools": [TOOL], "tool_choice": "required"}, True),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}}, True),
        ({"tools": [TOOL], "tool_choice": "auto"}, False),
        ({"response_format": {"type": "text"}}, False),
        ({}, False),
    ],
)
def test_the_penalty_belongs_to_shaped_answers_alone(options, structured):
    request = made(**options)
    assert is_structured(request) is structured
    assert ("repetition_penalty" in request) is structured


def test_parameters_of_tools_are_bounded_too():
    bounded = made(tools=[TOOL])["tools"][0]["function"]["parameters"]
    assert bounded["properties"]["q"] == {"type": "string", "maxLength": 20}
    assert "maxLength" not in TOOL["function"]["parameters"]["properties"]["q"], (
        "the caller's body was changed"
    )


@pytest.mark.parametrize(
    "body",
    [
        {"messages": []},
        {"messages": "hello"},
        {"tools": "f"},
        {"tools": ["f"]},
        {"tools": [{"type": "function"}]},
        {"tools": [{"type": "function", "function": {}}]},
        {"response_format": "json"},
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        {"response_format": schema_format([1])},
        {"response_format": schema_format({"enum": ["v" * 100] * 1000})},
    ],
)
def test_malformed_requests_are_refused_in_one_line(body):
    with pytest.raises(InvalidRequest) as caught:
        made(**body)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 120


@pytest.mark.parametrize("keyword", ["items", "const"])
def test_bottomless_schemas_are_refused(keyword):
    schema = {"type": "string"}
    for _ in range(5_000):
        schema = {keyword: schema}
    with pytest.raises(InvalidRequest, match="nested"):
        made(response_format=schema_format(schema))


def test_bounds_reach_every_place_that_holds_a_schema():
    string, bounded = {"type": "string"}, {"type": "string", "maxLength": 20}
    schema = {
        "$defs": {"d": string},
        "properties": {
            "p": {"anyOf": [string, {"type": ["string", "null"]}]},
            "a": {"type": "array", "items": string},
        },
        "additionalProperties": string,
    }
    assert bound_schema(schema, BOUNDS) == {
        "$defs": {"d": bounded},
        "properties": {
            "p": {"anyOf": [bounded, {"type": ["string", "null"], "maxLength": 20}]},
            "a": {"type": "array", "items": bounded, "maxItems": 3},
        },
        "additionalProperties": bounded,
    }


@pytest.mark.parametrize(
    "schema",
    [
        {"const": {"type": "string"}},
        {"enum": [{"type": "array"}]},
        {"type": "string", "enum": ["a"]},
        {"type": "string", "pattern": "^a+$"},
        {"type": "string", "format": "date"},
        {"type": "string", "maxLength": 500},
        {"type": "array", "maxItems": 50, "items": {"type": "integer"}},
        {"type": "object", "properties": {"type": {"type": "integer"}}},
    ],
)
def test_bounded_schemas_and_values_that_are_not_schemas_are_unchanged(schema):
    assert bound_schema(schema, BOUNDS) == schema


def test_a_bound_never_contradicts_the_callers_minimum():
    assert bound_schema({"type": "string", "minLength": 50}, BOUNDS)["maxLength"] == 50
    assert bound_schema({"type": "array", "minItems": 7}, BOUNDS)["maxItems"] == 7
    assert bound_schema({"type": "array", "prefixItems": [{}] * 5}, BOUNDS)["maxItems"] == 5


STRING, INTEGER = {"type": "string"}, {"type": "integer"}


def tagged(tag):
    return {"type": "object", "properties": {"kind": {"const": tag}}, "required": ["kind"]}


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"allOf": [INTEGER, {"minimum": 3}]}, "`allOf` at $ "),
        (
            {"type": "object", "properties": {"a": {"type": "string", "not": {"const": "x"}}}},
            "`not` at $.properties.a ",
        ),
        ({"type": "array", "items": {"if": STRING, "then": {"minLength": 2}}}, "`if` at $.items "),
        ({"$defs": {"d": {"anyOf": [{}, {"not": {}}]}}}, "`not` at $.$defs.d.anyOf[1] "),
        ({"properties": {"a b": {"not": {}}}}, '`not` at $.properties["a b"] '),
        ({"oneOf": [INTEGER, {"type": "number"}]}, "`oneOf` at $ "),
        ({"oneOf": [{"enum": [1, 2]}, {"enum": [2.0, 3]}]}, "`oneOf` at $ "),
        ({"oneOf": [tagged("a"), tagged("a")]}, "`oneOf` at $ "),
        ({"oneOf": [{"const": n} for n in range(40)]}, "`oneOf` at $ "),
        (
            {
                "$defs": {"d": {"anyOf": [{"$ref": "#/$defs/d"}] * 9}},
                "oneOf": [{"$ref": "#/$defs/d"}] * 2,
            },
            "`oneOf` at $ ",
        ),
        ({"$defs": {"d": INTEGER}, "$ref": "#/$defs/d", "minimum": 3}, "`minimum` at $ "),
        ({"type": "object", "anyOf": [tagged("a")], "required": ["b"]}, "`required` at $ "),
        ({"type": "string", "anyOf": [STRING, INTEGER]}, "`type` at $ "),
        ({"type": "string", "enum": ["a", 1]}, "`type` at $ "),
        ({"minimum": 3}, "`minimum` at $ "),
        ({"type": "object", "properties": {}, "required": ["a"]}, "`required` at $ "),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "`dependentRequired` at $ "),
        ({"type": ["string", "null"], "pattern": "^a*$", "maxLength": 2}, "`maxLength` at $ "),
    ],
)
def test_keywords_that_the_grammar_ignores_are_refused_with_their_path(schema, place):
    with pytest.raises(InvalidRequest) as caught:
        made(response_format=schema_format(schema))
    assert place in caught.value.message


@pytest.mark.parametrize(
    "schema",
    [
        {"const": {"not": {}, "if": {}}},
        {"enum": [{"allOf": [1, 2]}], "default": {"not": 1}, "examples": [{"not": 1}]},
        {
            "type": "object",
            "properties": {"not": STRING, "if": INTEGER, "oneOf": STRING},
            "required": ["not"],
        },
        {
            "$defs": {"d": tagged("a")},
            "allOf": [{"$ref": "#/$defs/d"}],
            "description": "one branch",
        },
        {"oneOf": [STRING, {"type": "null"}, {"enum": [1, True]}]},
        {"oneOf": [{"const": "a"}, {"const": "b"}]},
        {
            "$defs": {"a": tagged("a"), "b": tagged("b")},
            "oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}, {"type": "null"}],
        },
        {"type": "string", "const": "a", "title": "A"},
        {"type": ["string", "null"], "enum": ["a", None]},
        {"type": "number", "anyOf": [INTEGER, {"type": "number", "minimum": 0}]},
        {"properties": {"a": INTEGER}, "required": ["a"]},
        {
            "type": "object",
            "properties": {"мова": {"const": "українська"}, "a": {"type": ["string", "null"]}},
            "required": ["мова", "a"],
        },
    ],
)
def test_keywords_that_the_grammar_enforces_are_accepted(schema):
    made(response_format=schema_format(schema))


@pytest.mark.parametrize(
    ("choice", "refused"),
    [("required", True), ({"type": "function", "function": {"name": "odd"}}, True),
     ("auto", False), (None, False),
     ({"type": "function", "function": {"name": "plain"}}, False)],
)  # fmt: skip
def test_parameters_that_the_grammar_would_widen_are_refused_where_the_tool_is_forced(
    choice, refused
):
    odd = {"type": "object", "properties": {"a": {"not": {"type": "string"}}}}
    tools = [
        {"type": "function", "function": {"name": name, "parameters": schema}}
        for name, schema in (("odd", odd), ("plain", {}))
    ]
    body = {"messages": [{"role": "user", "content": "x"}], "tools": tools, "tool_choice": choice}
    rest = {
        "served_name": "m",
        "sampling": SamplingSettings(),
        "structured": StructuredSettings(),
        "stream": False,
    }
    if refused:
        with pytest.raises(InvalidRequest, match="`not`"):
            engine_request(body, **rest)
    else:
        assert len(engine_request(body, **rest)["tools"]) == 2


def test_no_bound_is_put_inside_something_negated():
    schema = {"not": {"type": "string"}, "if": {"type": "array"}}
    assert bound_schema(schema, BOUNDS) == schema


LEAVES = st.sampled_from(
    [
        {"type": "string"},
        {"type": "integer"},
        {"type": "string", "minLength": 30},
        {"enum": ["a", 1]},
        {"const": "x"},
        {},
    ]
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda items: {"type": "array", "items": items}, inner),
        st.builds(
            lambda items, least: {"type": ["array", "null"], "items": items, "minItems": least},
            inner,
            st.integers(0, 5),
        ),
        st.builds(lambda variants: {"anyOf": variants}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(
            lambda part: {
                "type": "object",
                "properties": {"p": part},
                "required": ["p"],
                "additionalProperties": False,
            },
            inner,
        ),
    ),
    max_leaves=6,
)
VALUES = st.recursive(
    st.one_of(st.none(), st.integers(-3, 3), st.text("axb", max_size=40)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=6), st.dictionaries(st.sampled_from(["p", "q"]), inner, max_size=2)
    ),
    max_leaves=6,
)


@given(SCHEMAS, VALUES)
def test_whatever_satisfies_the_bounded_schema_satisfies_the_callers(schema, value):
    before = copy.deepcopy(schema)
    bounded = bound_schema(schema, BOUNDS)
    assert schema == before
    Draft202012Validator.check_schema(bounded)
    try:
        validate(value, bounded, Draft202012Validator)
    except ValidationError:
        return
    validate(value, schema, Draft202012Validator)
