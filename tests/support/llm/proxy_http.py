"""The LLM proxy's HTTP routes over real adapters and a scripted upstream, without Serve."""

import json
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.llm.proxy import CALLER, KEY, client_of, proxy_over
from tests.support.llm.upstream import ScriptedUpstream

MESSAGES = [{"role": "user", "content": "Яка столиця України?"}]


BODY = {"model": "plain", "messages": MESSAGES, "metadata": CALLER}


@asynccontextmanager
async def running(plays="ok", **options):
    async with (
        ScriptedUpstream() as upstream,
        proxy_over(upstream.base_url, **options) as (proxy, recorder),
    ):
        upstream.script(plays)
        async with client_of(proxy, recorder) as client:
            yield client, upstream, recorder


def events_of(text):
    """[(name, data)] of an SSE body."""
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        found.append((fields.get("event", "message"), json.loads(fields["data"])))
    return found


def assert_envelope(response, status, kind, *, retryable):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert (error["type"], error["retryable"]) == (kind, retryable)
    assert error["message"]
    assert error["request_id"]
    for secret in (
        KEY,
        "127.0.0.1",
        "http://",
        "Traceback",
        ".py",
        str(Path(__file__).parents[3]),
        "site-packages",
    ):
        assert secret not in response.text
    return error
