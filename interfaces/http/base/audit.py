"""Which requests are written to the audit trail, and what of them: never contents, never keys.

An operator's request that changes something or takes data out is recorded before it is served. The
other routes of operators only read what they also show elsewhere, and consoles poll them.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from pydantic import ValidationError
from starlette.datastructures import QueryParams
from starlette.types import Scope

from contracts.access.audit import AuditRecord
from contracts.access.principals import ANYONE, Grants
from contracts.errors import Forbidden, InvalidRequest, RateLimited, Unauthorized
from interfaces.http.base.access import presents_credential
from interfaces.http.base.bodies import parse_json
from interfaces.http.base.claims import TENANT

REFUSED = "refused"
"""Under this name a route leaves in the request's state what it refused in an answer of its own."""
EXPORT = "/export"
"""A route of operators that ends so takes data out."""
READS = frozenset({"GET", "HEAD"})
PRINCIPALS = "/internal/access/principals/"


def is_audited(method: str, path: str) -> bool:
    """Whether a request of a route for operators is recorded."""
    return method not in READS or path.endswith(EXPORT)


def action_of(scope: Scope, body: bytes | None) -> AuditRecord:
    """Returns the record of a request that is about to be served.

    The tenant is the one that the body names, as the route will read it. None is the body of a
    route that reads its tenant from the query. What a principal is given stands in the object: its
    kind, and the names of its grants.
    """
    named: Any = QueryParams(scope["query_string"]) if body is None else None
    if body:
        with suppress(InvalidRequest):
            named = parse_json(body)
    given = _granted(named) if scope["method"] == "PUT" and PRINCIPALS in scope["path"] else ""
    return _record(scope, outcome="started", object=scope["path"] + given, **_tenant(named))


def refusal_of(scope: Scope, error: Exception) -> AuditRecord | None:
    """Returns the record of a request that was refused for who the caller is; None for others.

    Before the caller is known, it names the application alone, as a login that failed: callers
    choose methods and paths, and must not fill the trail with them. A request without a credential
    is such a login only where a page of another origin sent it.
    """
    is_forbidden = isinstance(error, Forbidden)
    if "principal" in scope["state"]:
        given = getattr(error, "details", None)
        return _record(scope, outcome="denied", **_tenant(given)) if is_forbidden else None
    presented = presents_credential(scope["headers"])
    if is_forbidden or (presented and isinstance(error, Unauthorized | RateLimited)):
        return _record(scope, outcome="denied", action="login", object=scope.get("root_path", ""))
    return None


def _granted(named: Any) -> str:
    with suppress(ValidationError):
        grants = Grants.model_validate(named)
        return f": {', '.join([grants.kind, *sorted(grants.model_fields_set - {'kind'})])}"
    return ""


def _tenant(named: Any) -> dict[str, str]:
    given = {name: named.get(name) for name in TENANT} if hasattr(named, "get") else {}
    return {name: value for name, value in given.items() if isinstance(value, str)}


def _record(scope: Scope, **fields: Any) -> AuditRecord:
    """Returns the record of a request, with `fields` in place of what it says itself."""
    given = {
        "principal": scope["state"].get("principal", ANYONE).name,
        "action": scope["method"],
        "object": scope["path"],
        "request_id": scope["state"]["request_id"],
        **fields,
    }
    return AuditRecord(**{**given, "object": given["object"].removeprefix("/internal/") or "/"})
