"""Routes of principals, keys and audit trail, below `/internal/access` of the root application."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query, Request, Response
from pydantic import BaseModel

from contracts.access.audit import AuditEntry, AuditQuery, AuditStore
from contracts.access.keys import IssuedKey, NewKey, PrincipalStore, PrincipalView, Rotation
from contracts.access.principals import Grants, Principal, PrincipalName
from contracts.errors import NotFound
from contracts.identity import Page, PageQuery, Tenant, as_uuid
from interfaces.http.base.routing import PathId, Router, refusals

PREFIX = "/internal/access"
Name = Annotated[PrincipalName, Path()]


class Me(BaseModel):
    """Answer of `GET /me`. `acts_for`: the caller acts for this agent in this microDAO alone."""

    name: str
    credential: str
    grants: Grants
    acts_for: Tenant | None = None


def is_admin(_method: str, path: str) -> bool:
    """Whether a route is for operators."""
    return path.startswith(PREFIX) and path != f"{PREFIX}/me"


async def me(request: Request) -> Me:
    """Returns who calls."""
    principal: Principal = request.state.principal
    return Me(
        name=principal.name,
        credential=principal.credential,
        grants=principal.grants,
        acts_for=principal.tenant,
    )


def access_router(store: PrincipalStore, audit: AuditStore) -> Router:
    """Returns the routes of principals, keys and audit trail."""
    router = Router()

    router.get(f"{PREFIX}/me", summary="Who the presented key is, and what it may do")(me)

    @router.get(f"{PREFIX}/principals", summary="Principals, newest first (operator)")
    async def page(query: Annotated[PageQuery, Query()]) -> Page[PrincipalView]:
        return await store.page(query)

    @router.get(
        f"{PREFIX}/principals/{{name}}",
        summary="One principal and its live keys (operator)",
        responses=refusals(404, 409),
    )
    async def find(name: Name) -> PrincipalView:
        return await store.find(name)

    @router.put(
        f"{PREFIX}/principals/{{name}}",
        summary="Create or change a principal (operator)",
        responses={201: {"model": PrincipalView}, **refusals(409)},
    )
    async def put(name: Name, grants: Grants, response: Response) -> PrincipalView:
        view, is_new = await store.put(name, grants)
        response.status_code = 201 if is_new else 200
        return view

    @router.delete(
        f"{PREFIX}/principals/{{name}}",
        summary="Remove a principal and its keys (operator)",
        status_code=204,
        responses=refusals(404, 409),
    )
    async def delete(name: Name) -> None:
        await store.delete(name)

    @router.post(
        f"{PREFIX}/principals/{{name}}/keys",
        summary="Issue a key; it is shown here alone (operator)",
        status_code=201,
        responses=refusals(404, 409),
    )
    async def issue(name: Name, wanted: NewKey | None = None) -> IssuedKey:
        return await store.add_key(name, wanted or NewKey())

    @router.post(
        f"{PREFIX}/principals/{{name}}/rotate",
        summary="Issue a key, and end the present ones after a grace period (operator)",
        status_code=201,
        responses=refusals(404, 409),
    )
    async def rotate(name: Name, wanted: Rotation | None = None) -> IssuedKey:
        return await store.add_key(name, wanted or Rotation())

    @router.delete(
        f"{PREFIX}/principals/{{name}}/keys/{{key_id}}",
        summary="Revoke a key now (operator)",
        status_code=204,
        responses=refusals(404),
    )
    async def revoke(name: Name, key_id: PathId) -> None:
        wanted = as_uuid(key_id)
        if wanted is None:
            raise NotFound("there is no such live key of this principal")
        await store.revoke(name, wanted)

    @router.get(f"{PREFIX}/audit", summary="The audit trail, newest first (operator)")
    async def trail(query: Annotated[AuditQuery, Query()]) -> Page[AuditEntry]:
        return await audit.page(query)

    return router
