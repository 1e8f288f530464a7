"""What a request claims: as whom it acts, in which microDAO, with which model or tool.

The one check of HTTP requests against their principal. Claims stand under the same names in paths,
queries and bodies of all routes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_flat_dependant
from pydantic import BaseModel
from starlette.datastructures import QueryParams
from starlette.requests import Request

from contracts.access.principals import SEE_ME, Principal
from contracts.errors import Forbidden

_WITHIN = ("metadata", "payload", "context")
"""Members of a body that may name agent and microDAO, too."""
TENANT = ("microdao_id", "agent_id")


def check_body(principal: Principal, body: Any) -> None:
    """Checks the claims of a body, a model or parsed JSON. Raises Forbidden."""
    if principal.unrestricted or body is None:
        return
    fields = _fields(body)
    principal.check(model=_text(fields, "model"), tool_id=_text(fields, "tool_id"))
    _check_tenant(principal, fields)
    for name in _WITHIN:
        if (within := fields.get(name)) is not None:
            _check_tenant(principal, _fields(within))


def check_address(request: Request, named: frozenset[str]) -> None:
    """Checks the claims of path and query.

    `named` are the members of `TENANT` that the route reads from the query. One that is left out is
    completed where the principal has only one to name. Raises Forbidden.
    """
    principal: Principal = request.state.principal
    if principal.unrestricted:
        return
    principal.check(agent_id=request.path_params.get("agent_id"))
    query = request.query_params
    missing: dict[str, str] = {}
    for name in named:
        given, allowed = query.get(name), getattr(principal, f"{name.removesuffix('_id')}s")
        if given:
            principal.check(**{name: given})
        elif not allowed.all:
            if allowed.none:
                raise Forbidden(f"no `{name}` is granted to `{principal.name}`: {SEE_ME}")
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


def _check_tenant(principal: Principal, fields: Mapping[str, Any]) -> None:
    principal.check(agent_id=_text(fields, "agent_id"), microdao_id=_text(fields, "microdao_id"))
    principal.check(agent_id=_text(fields, "sender_id"))


def _fields(body: Any) -> Mapping[str, Any]:
    """Returns the members of an object; of anything else, none."""
    if isinstance(body, BaseModel):
        return body.__dict__  # an attribute that is missing costs pydantic microseconds
    return body if isinstance(body, dict) else {}


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    return value if isinstance(value, str) else None
