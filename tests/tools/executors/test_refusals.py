"""What a caller reads of a tool server's refusal."""

from executors.http.answers import describe


def test_only_verdicts_on_the_call_are_quoted():
    assert (
        describe(422, b'{"error": {"message": "too\\n late"}}', str)
        == "the tool's server answered HTTP 422: too late"
    )
    assert describe(500, b'{"error": "password=x"}', str) == "the tool's server answered HTTP 500"
    assert describe(404, b"<html>", str) == "the tool's server answered HTTP 404"
    assert "redirect" in describe(302, b"", str)
