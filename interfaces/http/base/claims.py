"""What a request claims: as whom it acts, in which microDAO, with which model or tool.

The one check of HTTP requests against their principal. Claims stand under the same names in paths,
queries and bodies of all routes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_flat_dependant
from starlette.datastructures import QueryParams
from starlette.requests import Request

from contracts.access.principals import Principal
from contracts.errors import Forbidden

_ACTORS = ("agent_id", "sender_id")
_WITHIN = ("metadata", "payload", "context")
"""Members of a body that may name agent and microDAO, too."""
TENANT = ("microdao_id", "agent_id")


def check_body(principal: Principal, body: Any) -> None:
    """Checks the claims of a body, a model or parsed JSON. Raises Forbidden."""
    if principal.unrestricted or body is None:
        return
    read = _reader(body)
    _check(principal, model=read("model"), tool_id=read("tool_id"))
    _check_tenant(principal, read)
    for name in _WITHIN:
        within = read(name)
        if within is not None and not isinstance(within, str):
            _check_tenant(principal, _reader(within))


def check_address(request: Request, named: frozenset[str]) -> None:
    """Checks the claims of path and query.

    `named` are the members of `TENANT` that the route reads from the query. One that is left out is
    completed where the principal has only one to name. Raises Forbidden.
    """
    principal: Principal = request.state.principal
    if principal.unrestricted:
        return
    _check(principal, agent_id=request.path_params.get("agent_id"))
    query = request.query_params
    missing: dict[str, str] = {}
    for name in named:
        given, allowed = query.get(name), getattr(principal, f"{name.removesuffix('_id')}s")
        if given:
            _check(principal, **{name: given})
        elif not allowed.all:
            if allowed.sole is None:
                raise Forbidden(f"give `{name}`: `{principal.name}` sees only what it may act in")
            missing[name] = allowed.sole
    if missing:
        kept = [item for item in query.multi_items() if item[0] not in missing]
        request._query_params = QueryParams([*kept, *missing.items()])  # noqa: SLF001


def named_in_query(dependant: Dependant) -> frozenset[str]:
    """Returns the members of `TENANT` that a route reads from its query."""
    found: set[str] = set()
    for field in get_flat_dependant(dependant).query_params:
        fields = getattr(field.field_info.annotation, "model_fields", None)
        found.update([field.alias] if fields is None else fields)
    return frozenset(found.intersection(TENANT))


def _check_tenant(principal: Principal, read: Callable[[str], Any]) -> None:
    for name in _ACTORS:
        _check(principal, agent_id=read(name))
    _check(principal, microdao_id=read("microdao_id"))


def _reader(body: Any) -> Callable[[str], Any]:
    return body.get if isinstance(body, Mapping) else lambda name: getattr(body, name, None)


def _check(principal: Principal, **claims: Any) -> None:
    given = {name: value for name, value in claims.items() if isinstance(value, str)}
    if given:
        principal.check(**given)
