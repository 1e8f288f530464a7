"""The routes below `/v1` as a server, and the official client of it."""

from contextlib import asynccontextmanager

import openai

from tests.support.llm.limits import InProcessAuthority
from tests.support.llm.proxy import ingress_of, proxy_over
from tests.support.llm.upstream import ScriptedUpstream
from tests.support.uvicorn_server import served

MESSAGES = [{"role": "user", "content": "Яка столиця України?"}]


BODY = {"model": "plain", "messages": MESSAGES}


@asynccontextmanager
async def running(plays="ok", *, secret="s3cret", limit=None, max_concurrent=100, **options):
    source = InProcessAuthority() if limit else None
    async with (
        ScriptedUpstream() as upstream,
        proxy_over(upstream.base_url, limit=limit, source=source, **options) as (proxy, recorder),
    ):
        upstream.script(plays)
        app = ingress_of(proxy, recorder, internal=secret, max_concurrent=max_concurrent)
        async with served(app, root_path="/internal/llm") as url:
            yield url, upstream, recorder


def client_of(url, key="s3cret", **options):
    return openai.AsyncOpenAI(api_key=key, base_url=f"{url}/v1", max_retries=0, **options)
