"""Error texts of upstreams, as callers see them."""

import pytest

from contracts import errors
from contracts.errors import ContextLengthExceeded
from providers.errors import clean, error_for_status, in_band_error, reported_error

KEY = "Zq7+own/key=2024"


@pytest.mark.parametrize(
    "shown", [KEY, "Zq7%2Bown%2Fkey%3D2024", "zq7%2bown%2fkey%3d2024", KEY[:8], KEY[:11]]
)
def test_our_key_is_masked_in_every_form(shown):
    assert (
        clean(f"the credential '{shown} is not known", KEY) == "the credential '[key] is not known"
    )


def test_a_short_key_is_masked_whole():
    assert clean("bad key: abc12", "abc12") == "bad key: [key]"


def test_the_key_is_masked_in_refusals_and_in_errors_inside_an_answer():
    text = f"maximum context length: {KEY}"
    for error in (
        error_for_status("p", 400, {}, {"error": {"message": text}}, KEY),
        error_for_status("p", 422, {}, {"message": f"no: {KEY}"}, KEY),
        in_band_error({"message": text}, KEY),
    ):
        assert "[key]" in error.message
        assert "Zq7" not in error.message


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (413, "Request too large"),
        (400, "This model's maximum context length is 8192 tokens, however you requested 9000"),
        (400, "prompt is too long: 210000 tokens > 200000 maximum"),
        (
            400,
            (
                "The input token count (1200000) exceeds the maximum number of tokens "
                "allowed (1048576)."
            ),
        ),
        (
            400,
            "This model's maximum prompt length is 131072 but the request contains 200000 tokens.",
        ),
        (400, "Input is too long for requested model."),
        (422, "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8193."),
        (400, "the request exceeds the available context size"),
    ],
)
def test_providers_say_in_many_ways_that_a_request_is_too_long(status, text):
    assert isinstance(
        error_for_status("p", status, {}, {"error": {"message": text}}), ContextLengthExceeded
    )
    assert not isinstance(
        error_for_status("p", 400, {}, {"error": {"message": "temperature is too high"}}),
        ContextLengthExceeded,
    )


@pytest.mark.parametrize(
    "text",
    ["boom\nTraceback (most recent call last):\n  x = secret()", 'File "app.py", line 3, in call'],
)
def test_nothing_of_a_traceback_is_shown(text):
    assert clean(text) == "the provider reported an internal failure"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (r"cannot open C:\Program Files\llm\app.py today", "cannot open [path] today"),
        ("cannot open d:/models/a.bin", "cannot open [path]"),
        (r"cannot open \\store\share\x", "cannot open [path]"),
        ("no route to db-1.internal.example:5432 now", "no route to [address] now"),
        (
            "no route to localhost:80, vllm:8000 or [::1]:8000",
            "no route to [address], [address] or [address]",
        ),
        (
            "`max_tokens`: 4096 at 12:30 is over the limit of 1024",
            "`max_tokens`: 4096 at 12:30 is over the limit of 1024",
        ),
    ],
)
def test_windows_paths_and_hosts_are_masked(text, shown):
    assert clean(text) == shown


@pytest.mark.parametrize("part", ["a-", "a.", "\\a ", " \\\\a", "C:\\ "])
def test_no_text_takes_long(part):
    assert len(clean(part * 20_000)) <= 301


@pytest.mark.parametrize(
    ("error", "leaf"),
    [
        ({"code": 429}, errors.UpstreamRateLimited),
        ({"code": "429"}, errors.UpstreamRateLimited),
        ({"type": "rate_limit_error", "message": "Too many tokens"}, errors.UpstreamRateLimited),
        ({"code": "insufficient_quota", "type": "insufficient_quota"}, errors.UpstreamAuthFailed),
        ({"code": "invalid_api_key", "type": "invalid_request_error"}, errors.UpstreamAuthFailed),
        ({"status_code": 403}, errors.UpstreamAuthFailed),
        (
            {"code": "model_not_found", "type": "invalid_request_error"},
            errors.UpstreamMisconfigured,
        ),
        ({"type": "timeout_error"}, errors.UpstreamTimeout),
        ({"type": "overloaded_error"}, errors.UpstreamUnavailable),
        ({"code": 500, "type": "invalid_request_error"}, errors.UpstreamUnavailable),
        ({"type": "invalid_request_error", "message": "no"}, errors.UpstreamRejected),
        ({"code": "context_length_exceeded"}, errors.ContextLengthExceeded),
        ({"status": "RESOURCE_EXHAUSTED"}, errors.UpstreamRateLimited),
        ({"type": "invalid_upstream_reply"}, errors.UpstreamInvalidResponse),
        ({"code": 1210}, errors.UpstreamInvalidResponse),
        ("Rate limit exceeded", errors.UpstreamRateLimited),
        ("The server is overloaded", errors.UpstreamUnavailable),
        ("Invalid request: something else", errors.UpstreamInvalidResponse),
        ("not found", errors.UpstreamInvalidResponse),
        (7, errors.UpstreamInvalidResponse),
        ([], errors.UpstreamInvalidResponse),
    ],
    ids=str,
)
def test_an_error_inside_an_answer_keeps_its_class(error, leaf):
    assert type(in_band_error(error, KEY, "p")) is leaf


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"choices": [{"delta": {}}], "message": "x", "code": 1},
        {"usage": {"prompt_tokens": 1}, "detail": "x"},
        {"type": "ping"},
        {"message": "queued"},
        {"error": None, "choices": []},
        {"base_resp": {"status_code": 0, "status_msg": "success"}},
    ],
)
def test_bodies_without_an_error(answer):
    assert reported_error(answer) is None


@pytest.mark.parametrize(
    "answer",
    [
        {"error": "x"},
        {"object": "error", "message": "x"},
        {"detail": "x"},
        {"code": "InvalidParameter", "message": "x"},
        {"msg": "x", "code": 5},
        {"base_resp": {"status_code": 1004, "status_msg": "x"}},
    ],
)
def test_bodies_that_report_an_error(answer):
    assert reported_error(answer)
