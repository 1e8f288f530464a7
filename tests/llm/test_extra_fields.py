"""Extra fields of a request, which only the upstream knows: bounded, no known one overridden.

Over values alone; `test_proxy_requests_http.py` sends whole requests over HTTP.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import InvalidRequest
from contracts.llm.requests import MAX_EXTRA_BYTES, MAX_EXTRA_FIELDS, ProxyRequest, checked_extra
from providers.shapes import chat_body

MESSAGES = [{"role": "user", "content": "hi"}]
CALLER = {"agent_id": "agent:sofia", "microdao_id": "microdao:7"}
FIELDS = st.dictionaries(
    st.sampled_from(
        ["model", "messages", "stream", "stream_options", "temperature", "top_k", "user"]
    ),
    st.integers(),
)


@given(FIELDS, FIELDS, st.booleans())
def test_extra_fields_never_win_over_known_ones(settings, passed, stream):
    body = chat_body(
        "m", MESSAGES, {"temperature": 0.5, "extra_body": passed}, settings, stream=stream
    )
    assert (body["model"], body["messages"], body["temperature"]) == ("m", MESSAGES, 0.5)
    assert (body.get("stream"), body.get("stream_options")) == (
        (True, {"include_usage": True}) if stream else (None, None)
    )
    assert "extra_body" not in body
    for name in ("top_k", "user"):
        assert body.get(name) == settings.get(name, passed.get(name)), "the operator's word stands"


@pytest.mark.parametrize(
    "name", ["models", "provider", "route", "api_base", "api_key", "fallbacks", "extra_headers"]
)
def test_only_the_operator_sets_fields_that_choose_the_target(name):
    passed = {"extra_body": {name: "caller's", "user": "u"}}
    assert chat_body("m", MESSAGES, passed, {}, stream=False) == {
        "model": "m",
        "messages": MESSAGES,
        "user": "u",
    }
    assert (
        chat_body("m", MESSAGES, passed, {name: "operator's"}, stream=False)[name] == "operator's"
    )
    assert passed == {"extra_body": {name: "caller's", "user": "u"}}


def test_nulls_beside_a_schema_are_left_out():
    schema = {"name": "n", "schema": {"default": None}, "description": None, "strict": None}
    asked = {
        "model": "m",
        "messages": MESSAGES,
        "metadata": CALLER,
        "response_format": {"type": "json_schema", "json_schema": schema},
    }
    sent = ProxyRequest.model_validate(asked).options()["response_format"]
    assert sent == {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"default": None}},
    }


def test_extra_fields_come_from_pass_through_and_not_from_the_body():
    request = ProxyRequest.model_validate(
        {"model": "m", "messages": MESSAGES, "metadata": CALLER, "temperature": 1}
    )
    assert request.options() == {"temperature": 1}
    request.pass_through({"logit_bias": {"5": -100}})
    assert request.options() == {"temperature": 1, "extra_body": {"logit_bias": {"5": -100}}}
    request.pass_through({})
    assert "extra_body" not in request.options()
    with pytest.raises(ValueError, match="extra_body"):
        ProxyRequest.model_validate(
            {"model": "m", "messages": MESSAGES, "metadata": CALLER, "extra_body": {"user": "x"}}
        )


NESTED: list = []
NESTED.append(NESTED)


@pytest.mark.parametrize(
    "fields",
    [
        {f"f{index}": 1 for index in range(MAX_EXTRA_FIELDS + 1)},
        {"long": "x" * MAX_EXTRA_BYTES},
        {"nan": float("nan")},
        {"object": object()},
        {"loop": NESTED},
        {"surrogate": "\ud800"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_extra_fields_must_be_bounded_json(fields):
    with pytest.raises(InvalidRequest):
        checked_extra(fields)
