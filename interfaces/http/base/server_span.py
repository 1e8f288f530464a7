"""The span of one HTTP request, after OpenTelemetry's semantic conventions for HTTP servers."""

from __future__ import annotations

from collections.abc import Awaitable

from starlette.types import Scope

from common import tracing
from interfaces.http.base.request_slots import RequestSlot

METHODS = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}
)
_CONTEXT = frozenset({b"traceparent", b"tracestate"})
REFUSAL = "refusal"
"""In the request's state: the `type` of the error that it was answered with."""


async def traced(scope: Scope, slot: RequestSlot, answer: Awaitable[None]) -> None:
    """Awaits `answer` within a span that continues the caller's trace, if the request names one.

    The span ends with the answer, a stream's with its last part. Neither its name nor an attribute
    shows the path itself: that holds names of documents and the like.
    """
    carrier = {
        name.decode(): value.decode("latin-1")
        for name, value in scope["headers"]
        if name in _CONTEXT
    }
    root: str = scope.get("root_path", "")
    parent = tracing.remote_context(carrier)
    with tracing.span("HTTP", tracing.SpanKind.SERVER, parent=parent) as span:
        try:
            await answer
        finally:
            if span.is_recording():
                _describe(span, scope, root, slot.status)


def _describe(span: tracing.Span, scope: Scope, root: str, status: int) -> None:
    known, route = scope["method"] in METHODS, getattr(scope.get("route"), "path", None)
    attributes = {
        "http.request.method": scope["method"] if known else "_OTHER",
        "daarion.request_id": scope["state"]["request_id"],
    }
    name = scope["method"] if known else "HTTP"
    if route is not None:
        attributes["http.route"] = f"{root}{route}"
        name = f"{name} {root}{route}"
    if status:
        attributes["http.response.status_code"] = status
    span.update_name(name)
    span.set_attributes(attributes)
    if (refusal := scope["state"].get(REFUSAL)) is not None:
        # An answer below 500 is no failure of the server's.
        span.set_attribute("error.type", refusal)
    if status >= 500:
        tracing.fail(span, refusal or str(status))
