"""HTTP routes of the agent runtime, below `/internal/agent-runtime`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from contracts.agents.blueprints import Blueprint
from contracts.agents.invocations import AgentInvocation, InvocationAnswer
from contracts.agents.ports import RunStore
from contracts.agents.runs import RunPage, RunQuery, RunView
from contracts.errors import InvalidRequest, NotFound
from contracts.health import Health
from contracts.identity import Identifier
from interfaces.http.base.bodies import read_model
from interfaces.http.base.errors import JsonResponse
from interfaces.http.base.health import add_health_routes
from interfaces.http.base.routing import add_route, new_router
from services.agents.runs import AgentRuns
from services.agents.texts import clean

MAX_BODY_BYTES = 1 << 20
MAX_KEY_CHARS = 200
MICRODAO_HEADER = "x-microdao-id"
_FLAGS = {"": True, "1": True, "true": True, "0": False, "false": False}


class AgentList(BaseModel):
    """Body of `GET /agents`."""

    agents: list[Blueprint]


class WaitQuery(BaseModel):
    """Query of `POST /invocations`: with `wait=false` the answer comes as soon as the run is recorded."""

    wait: bool = True


class RunIdentity(BaseModel):
    """Query of `GET /runs/{id}`, or the header `X-Microdao-Id` in its place."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    microdao_id: Identifier


@dataclass(frozen=True)
class AgentRoutes:
    """The endpoints. The blueprints are looked up at each request: a reload replaces them."""

    runs: AgentRuns
    store: RunStore
    blueprints: Callable[[], Mapping[str, Blueprint]]
    health: Callable[[], Health]

    async def invoke(self, request: Request) -> Response:
        """`POST /invocations`: 200 with the reply, or 202 while the run goes on."""
        wait = _flag(request, "wait")
        key = request.headers.get("idempotency-key", "").strip()
        if len(key) > MAX_KEY_CHARS:
            raise InvalidRequest(f"the Idempotency-Key is longer than {MAX_KEY_CHARS} characters")
        invocation = await read_model(request, AgentInvocation, MAX_BODY_BYTES)
        answer = await self.runs.invoke(
            invocation, wait=wait, trigger=f"key:{clean(key)}" if key else None
        )
        is_open = answer.status in {"queued", "running"}
        return JsonResponse(
            answer.model_dump(mode="json", exclude_none=True), status_code=202 if is_open else 200
        )

    async def list_agents(self, _request: Request) -> Response:
        """`GET /agents`."""
        agents = [blueprint.model_dump(mode="json") for blueprint in self.blueprints().values()]
        return JsonResponse({"agents": agents})

    async def read_run(self, request: Request) -> Response:
        """`GET /runs/{id}`."""
        identity = RunIdentity.model_validate(_with_header(request))
        try:
            run_id = UUID(request.path_params["id"])
        except ValueError:
            raise NotFound("there is no such run in this microDAO") from None
        run = await self.store.find(identity.microdao_id, run_id)
        if run is None:
            raise NotFound("there is no such run in this microDAO")
        return JsonResponse(run.model_dump(mode="json", exclude_none=True))

    async def list_runs(self, request: Request) -> Response:
        """`GET /runs`."""
        page = await self.store.page(RunQuery.model_validate(_with_header(request)))
        items = [
            run.model_dump(mode="json", exclude_none=True, exclude={"steps"}) for run in page.items
        ]
        return JsonResponse(
            {"items": items} | ({"next_cursor": page.next_cursor} if page.next_cursor else {})
        )


def agents_router(routes: AgentRoutes) -> APIRouter:
    """Returns the router of the application."""
    router = new_router()
    add_route(
        router, "POST", "/invocations", routes.invoke,
        summary="Let an agent answer a message, once for each message", body=AgentInvocation, query=WaitQuery, response=InvocationAnswer,
        answers={202: InvocationAnswer}, errors=(400, 401, 403, 404, 413, 503),
    )  # fmt: skip
    add_route(
        router,
        "GET",
        "/agents",
        routes.list_agents,
        summary="The agents' blueprints",
        response=AgentList,
        errors=(401,),
    )
    add_route(
        router, "GET", "/runs", routes.list_runs,
        summary="A microDAO's runs, newest first", query=RunQuery, response=RunPage, errors=(400, 401, 503),
    )  # fmt: skip
    add_route(
        router, "GET", "/runs/{id}", routes.read_run,
        summary="One run: its steps, tools, tokens, times and outcome", query=RunIdentity, response=RunView, errors=(400, 401, 404, 503),
    )  # fmt: skip
    add_health_routes(router, routes.health)
    return router


def _with_header(request: Request) -> dict[str, str]:
    """The query; the tenant may stand in a header instead, and must not stand in both with different values."""
    query = dict(request.query_params)
    given = request.headers.get(MICRODAO_HEADER)
    if given and query.setdefault("microdao_id", given) != given:
        raise InvalidRequest("microdao_id: differs from the header X-Microdao-Id")
    return query


def _flag(request: Request, name: str) -> bool:
    given = request.query_params.get(name, "true").lower()
    if given not in _FLAGS:
        raise InvalidRequest(f"{name}: give true or false")
    return _FLAGS[given]
