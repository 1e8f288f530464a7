"""The LLM proxy with cache, keys and batches, over PostgreSQL and a scripted upstream."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import httpx

from contracts.health import Health
from deployments.llm.wiring import AnswersRuntime
from interfaces.http.base.access import AccessControl
from interfaces.http.base.ingress import Ingress
from interfaces.http.llm.batches import BatchRoutes, add_batch_routes
from interfaces.http.llm.chat import LLMRoutes, llm_router
from interfaces.http.llm.openai import OPENAI_ERRORS, OpenAIRoutes, add_openai_routes
from services.llm.batches import WorkerSettings
from services.llm.idempotency import IdempotencyTimes
from tests.support.access import fixed_access
from tests.support.llm.proxy import proxy_over, settings
from tests.support.uvicorn_server import JSON

QUICK = WorkerSettings(
    poll_every_s=0.1, lease_s=3.0, renew_every_s=0.3, backoff_s=0.1, backoff_max_s=0.4
)
QUICK_TIMES = IdempotencyTimes(lease_s=2.0, renew_every_s=0.4, poll_every_s=0.02, max_poll_s=0.1)


@dataclass
class Replica:
    """One replica's ingress and the parts behind it."""

    app: Ingress
    client: httpx.AsyncClient
    runtime: AnswersRuntime
    recorder: Any


@contextlib.asynccontextmanager
async def llm_replica(
    database_url,
    base_url,
    *,
    sections=None,
    worker=QUICK,
    times=QUICK_TIMES,
    limit=None,
    source=None,
    secret=None,
    principals=None,
    keys=None,
    limits_of=None,
    prices=None,
    **models,
):
    """Yields a running replica.

    `sections` are of `llm.yaml`: batch, cache, idempotency; other keywords are models.
    """
    access = fixed_access(secret, None, principals=principals, keys=keys)
    async with proxy_over(
        base_url, limit=limit, source=source, limits_of=limits_of, prices=prices, **models
    ) as (
        proxy,
        recorder,
    ):
        runtime = AnswersRuntime(
            database_url, recorder, access.directory.claimed, worker=worker, times=times
        )
        config = settings(base_url, **models).model_dump(mode="json") | (sections or {})
        runtime.reconfigure(type(settings(base_url)).model_validate(config), proxy)
        await runtime.open()
        router = llm_router(
            LLMRoutes(runtime.gateway, None, lambda: Health(status="ready"), runtime.idempotency)
        )
        add_openai_routes(router, OpenAIRoutes(runtime.gateway))
        add_batch_routes(router, BatchRoutes(lambda: runtime.batches))
        app = Ingress(
            router,
            AccessControl(access),
            recorder,
            max_concurrent=500,
            error_shapes=OPENAI_ERRORS,
        )
        headers = JSON | ({"X-Internal-Secret": secret} if secret else {})
        try:
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(app),
                base_url="http://localhost",
                headers=headers,
                timeout=60,
            ) as client:
                yield Replica(app, client, runtime, recorder)
        finally:
            await runtime.close()
