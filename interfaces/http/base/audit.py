"""Which requests are written to the audit trail, and what of them: never contents, never keys.

An operator's request that changes something or takes data out is recorded before it is served. The
other routes of operators only read what they also show elsewhere, and consoles poll them.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import orjson
from starlette.datastructures import QueryParams
from starlette.types import Scope

from contracts.access.audit import AuditRecord
from contracts.access.principals import ANYONE, Principal
from contracts.errors import Forbidden, RateLimited, Unauthorized
from interfaces.http.base.claims import TENANT

REFUSED = "refused"
"""Under this name a route leaves in the request's state what it refused in an answer of its own."""
EXPORT = "/export"
"""A route of operators that ends so takes data out."""
MAX_READ_BYTES = 64 << 10
_READS = frozenset({"GET", "HEAD"})
_PREFIX = "/internal/"


def is_audited(method: str, path: str) -> bool:
    """Whether a request of a route for operators is recorded."""
    return method not in _READS or path.endswith(EXPORT)


def action_of(scope: Scope, body: bytes) -> AuditRecord:
    """Returns the record of a request that is about to be served.

    The tenant is the one that the query names, or else the body, if it is short and has arrived.
    """
    named: Any = QueryParams(scope["query_string"])
    if not any(name in named for name in TENANT) and 0 < len(body) <= MAX_READ_BYTES:
        with suppress(ValueError):
            named = orjson.loads(body)
    return _record(scope, outcome="started", **_tenant(named))


def refusal_of(scope: Scope, error: Exception) -> AuditRecord | None:
    """Returns the record of a request that was refused for who the caller is; None for others.

    A login that failed names the application alone: callers choose paths, and whoever has no
    credential must not fill the trail with them.
    """
    if "principal" not in scope["state"] and isinstance(error, Unauthorized | RateLimited):
        place = scope.get("root_path", "").removeprefix(_PREFIX) or "/"
        return _record(scope, outcome="denied", action="login", object=place)
    if isinstance(error, Forbidden):
        return _record(scope, outcome="denied", **_tenant(error.details))
    return None


def _tenant(named: Any) -> dict[str, str]:
    given = {name: named.get(name) for name in TENANT} if hasattr(named, "get") else {}
    return {name: value for name, value in given.items() if isinstance(value, str)}


def _record(scope: Scope, **fields: Any) -> AuditRecord:
    state = scope["state"]
    principal: Principal = state.get("principal", ANYONE)
    given = {
        "principal": principal.name,
        "action": scope["method"],
        "object": scope["path"].removeprefix(_PREFIX),
        "request_id": state["request_id"],
    }
    return AuditRecord(**(given | fields))
