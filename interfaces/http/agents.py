"""HTTP routes of the agent runtime, below `/internal/agent-runtime`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

from fastapi import Depends, Header, Query, Request, Response
from pydantic import BaseModel, StringConstraints

from contracts.agents.blueprints import Blueprint
from contracts.agents.invocations import AgentInvocation, InvocationAnswer
from contracts.agents.ports import RunStore
from contracts.agents.runs import RunQuery, RunView
from contracts.errors import NotFound
from contracts.health import Health
from contracts.identity import Page, as_uuid
from interfaces.http.base.errors import JsonResponse
from interfaces.http.base.health import add_health_routes
from interfaces.http.base.identity import MicrodaoQuery, TenantRequest, one_tenant
from interfaces.http.base.routing import Flag, PathId, Router, refusals
from services.agents.runs import AgentRuns
from services.agents.texts import clean

MAX_BODY_BYTES = 1 << 20
InvocationKey = Annotated[
    str | None,
    StringConstraints(strip_whitespace=True, max_length=200),
    Header(alias="Idempotency-Key"),
]


class AgentList(BaseModel):
    """Body of `GET /agents`."""

    agents: list[Blueprint]


def agents_router(
    runs: AgentRuns,
    store: RunStore,
    blueprints: Callable[[], Mapping[str, Blueprint]],
    health: Callable[[], Health],
) -> Router:
    """Returns the router of the application. `blueprints` is asked anew at each request: a reload
    replaces them.
    """
    router = Router(MAX_BODY_BYTES, TenantRequest)

    @router.post(
        "/invocations",
        summary="Let an agent answer a message, once for each message",
        description="With `wait=false` the answer comes as soon as the run is recorded.",
        responses={202: {"model": InvocationAnswer}, **refusals(404)},
    )
    async def invoke(
        invocation: AgentInvocation,
        response: Response,
        *,
        wait: Annotated[Flag, Query()] = True,
        key: InvocationKey = None,
    ) -> InvocationAnswer:
        answer = await runs.invoke(
            invocation, wait=wait, trigger=f"key:{clean(key)}" if key else None
        )
        response.status_code = 202 if answer.status in {"queued", "running"} else 200
        return answer

    @router.get(
        "/agents",
        summary="The blueprints of agents that the caller may act as",
        response_model=AgentList,
    )
    async def list_agents(request: Request) -> Response:
        named = request.state.principal.agents
        agents = [
            blueprint.model_dump(mode="json")
            for blueprint in blueprints().values()
            if blueprint.id in named
        ]
        return JsonResponse({"agents": agents})

    @router.get(
        "/runs",
        summary="A microDAO's runs, newest first",
        dependencies=[Depends(one_tenant)],
        response_model_exclude={"items": {"__all__": {"steps"}}},
    )
    async def list_runs(query: Annotated[RunQuery, Query()]) -> Page[RunView]:
        return await store.page(query)

    @router.get(
        "/runs/{run_id}",
        summary="One run: its steps, tools, tokens, times and outcome",
        dependencies=[Depends(one_tenant)],
        responses=refusals(404),
    )
    async def read_run(
        run_id: PathId, query: Annotated[MicrodaoQuery, Query()], request: Request
    ) -> RunView:
        wanted = as_uuid(run_id)
        run = await store.find(query.microdao_id, wanted) if wanted else None
        if run is None or run.agent_id not in request.state.principal.agents:
            raise NotFound("there is no such run in this microDAO")
        return run

    add_health_routes(router, health)
    return router
