"""Redaction of secrets, without a server."""

import base64

import orjson
from hypothesis import given
from hypothesis import strategies as st

from executors.http.answers import MAX_REASON_CHARS, describe
from executors.redaction import Redactor
from tests.support.tools.json_values import json_values

SECRET = "s3cr3t-κλειδί-value"


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


def test_a_secret_at_the_cut_of_a_reason_is_taken_out_whole():
    body = b'{"error": "' + b"x" * (MAX_REASON_CHARS - 5) + SECRET.encode() + b'"}'
    assert SECRET[:3] not in describe(422, body, Redactor([SECRET]).text)
