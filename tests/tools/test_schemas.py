"""JSON Schemas of tools: refusals, violations, and that no schema or value blocks a replica."""

from __future__ import annotations

import time

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import InvalidRequest
from services.tools.schemas import Budget, CompiledSchema
from services.tools.values import frozen, size_problem

DRAFT_7 = "http://json-schema.org/draft-07/schema#"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "pattern": "^[А-ЯІЇЄҐ]"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True, "maxItems": 3},
        "mood": {"enum": ["good", "bad"]},
        "extra": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    },
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"name": "Ірина"}, None),
        ({"name": "Ірина", "age": 30, "tags": ["a", "b"], "mood": "good", "extra": None}, None),
        ([], "$: expected object"),
        ({}, "$: expected the required property `name`"),
        ({"name": "irina"}, "$.name: expected a text that matches ^[А-ЯІЇЄҐ]"),
        ({"name": "Ірина", "age": "30"}, "$.age: expected integer"),
        ({"name": "Ірина", "age": True}, "$.age: expected integer"),
        ({"name": "Ірина", "age": -1}, "$.age: expected a number of at least 0"),
        (
            {"name": "Ірина", "tags": ["a", "a"]},
            "$.tags: expected items that differ from each other",
        ),
        ({"name": "Ірина", "tags": [1]}, "$.tags[0]: expected string"),
        ({"name": "Ірина", "mood": "so"}, "$.mood: expected one of ['good', 'bad']"),
        (
            {"name": "Ірина", "more": 1},
            "$: expected no properties beside the declared ones (unknown properties: more)",
        ),
    ],
)
def test_a_violation_names_the_path_and_what_was_expected(value, text):
    violation = CompiledSchema(PERSON).violation(value)
    assert (violation and violation.text) == text


def test_a_violated_union_names_its_branches():
    violation = CompiledSchema(PERSON).violation({"name": "Ірина", "extra": "x"})
    assert violation.path == "$.extra"
    assert "integer" in violation.expected
    assert "null" in violation.expected


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"$ref": "http://elsewhere/schema.json"}, "another document"),
        ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "another document"),
        ({"$ref": "other.json"}, "another document"),
        ({"$ref": "#"}, "without end"),
        (
            {
                "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
                "$ref": "#/$defs/a",
            },
            "without end",
        ),
        ({"properties": {"a": {"$ref": "#/$defs/none"}}}, "leads nowhere"),
        ({"$dynamicRef": "#x"}, "not served"),
        ({"properties": {"a": {"$id": "http://x/"}}}, "not served"),
        ({"$schema": "http://json-schema.org/draft-03/schema"}, "$schema"),
        ({"properties": {"a": {"$schema": DRAFT_7}}}, "`$schema`, which is not served"),
        ({"type": "strin"}, "not a valid JSON Schema"),
        ({"properties": {"a": {"minimum": "1"}}}, "not a valid JSON Schema"),
        ({"properties": {"a": {"pattern": "(?=a)b"}}}, "linear time"),
        ({"properties": {"a": {"pattern": "(a)\\1"}}}, "linear time"),
        ({"properties": {"a": {"pattern": "("}}}, ""),
        ({"properties": {"a": {"pattern": "a" * 2_000}}}, "characters"),
        (
            {"unevaluatedProperties": False, "patternProperties": {"a": True}},
            "unevaluatedProperties",
        ),
        (
            {"unevaluatedProperties": False, "allOf": [{"patternProperties": {"a": True}}]},
            "unevaluatedProperties",
        ),
        ({"description": "x" * 70_000}, "KiB"),
        ({"enum": list(range(5_000))}, "values"),
        ("text", "object"),
    ],
)
def test_schemas_that_are_refused(schema, reason):
    with pytest.raises(InvalidRequest) as refused:
        CompiledSchema(schema)
    assert reason in refused.value.message


def test_deep_schemas_are_refused():
    schema = {}
    for _ in range(200):
        schema = {"properties": {"a": schema}}
    with pytest.raises(InvalidRequest):
        CompiledSchema(schema)


def test_draft_7_and_a_top_level_id_are_served():
    schema = {
        "$schema": DRAFT_7,
        "$id": "https://x/y",
        "items": [{"type": "integer"}],
        "type": "array",
    }
    assert CompiledSchema(schema).violation(["x"]).path == "$[0]"


def test_recursive_schemas_follow_the_value():
    tree = CompiledSchema(
        {"type": "object", "properties": {"child": {"$ref": "#"}}, "additionalProperties": False}
    )
    assert tree.violation({"child": {"child": {}}}) is None
    assert tree.violation({"child": {"child": {"x": 1}}}).path == "$.child.child"


@pytest.mark.parametrize("dialect", [{}, {"$schema": DRAFT_7}])
@pytest.mark.parametrize("reference", ["#", "#/properties/a"])
def test_patterns_that_blow_up_backtracking_engines_do_not(dialect, reference):
    schema = CompiledSchema(
        {
            **dialect,
            "properties": {"a": {"pattern": "^(a+)+$"}, "b": {"$ref": reference}},
            "pattern": "^(a+)+$",
        }
    )
    started = time.thread_time()
    for value in ("a" * 30 + "!", {"b": "a" * 30 + "!"}, {"a": "a" * 50_000 + "!"}):
        assert schema.violation(value) is not None
    assert time.thread_time() - started < 1


def test_references_that_multiply_end_within_the_budget():
    schema = CompiledSchema(
        {"properties": {"a": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}}, "required": ["z"]}
    )
    value = {}
    for _ in range(30):
        value = {"a": value}
    started = time.thread_time()
    assert "checked within bounds" in schema.violation(value, Budget(steps=5_000)).expected
    assert time.thread_time() - started < 5


def test_a_chain_of_references_that_multiplies_is_refused():
    schema = {"$defs": {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}}
    schema["$defs"]["d40"] = {"type": "integer"}
    with pytest.raises(InvalidRequest):
        CompiledSchema({**schema, "$ref": "#/$defs/d0"})


def test_unique_items_are_compared_in_linear_time():
    started = time.thread_time()
    assert (
        CompiledSchema({"uniqueItems": True}).violation(
            [[n] for n in range(50_000)], Budget(steps=10**6, cpu_s=10)
        )
        is None
    )
    assert time.thread_time() - started < 5


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.sampled_from([0.0, 1.0, 1.5])
    | st.sampled_from(["", "a", "ab", "я"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["a", "b", "ab"]), inner, max_size=3)
    ),
    max_leaves=10,
)
SCHEMAS = [
    {"uniqueItems": True},
    {"patternProperties": {"^a": {"type": "integer"}}, "additionalProperties": {"type": "string"}},
    {"properties": {"a": {"pattern": "b$"}}, "additionalProperties": False},
    {
        "type": ["array", "object"],
        "items": {"anyOf": [{"type": "integer", "minimum": 0}, {"pattern": "a"}]},
    },
    {"not": {"required": ["a"]}, "maxProperties": 2},
]


@settings(max_examples=200, deadline=None)
@given(value=JSON, schema=st.sampled_from(SCHEMAS))
def test_agrees_with_the_library_about_validity(value, schema):
    expected = jsonschema.Draft202012Validator(schema).is_valid(value)
    assert (CompiledSchema(schema).violation(value) is None) == expected


@given(value=JSON, other=JSON)
def test_frozen_values_are_equal_when_json_schema_says_so(value, other):
    unique = jsonschema.Draft202012Validator({"uniqueItems": True}).is_valid([value, other])
    assert (frozen(value) != frozen(other)) == unique


def depth_and_values(value):
    children = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list):
        children = ()
    inner = [depth_and_values(child) for child in children]
    return 1 + max((depth for depth, _ in inner), default=0), 1 + sum(count for _, count in inner)


@given(value=JSON)
def test_depth_and_values_are_counted_exactly(value):
    depth, values = depth_and_values(value)
    bounds = {"max_depth": depth, "max_values": values, "max_bytes": 1_000}
    assert size_problem(value, **bounds) is None
    assert "deeper" in size_problem(value, **bounds | {"max_depth": depth - 1})
    assert "values" in size_problem(value, **bounds | {"max_values": values - 1})
    assert "KiB" in size_problem(value, **bounds | {"max_bytes": 1})


def test_a_size_is_found_without_recursion():
    value = []
    for _ in range(100_000):
        value = [value]
    bounds = {"max_values": 1_000, "max_bytes": 1 << 20}
    assert "deeper" in size_problem(value, max_depth=32, **bounds)
