"""Spans of this process, in OpenTelemetry's terms: where they begin and end, and W3C trace context.

`use` gives the process a tracer (`backends/telemetry/traces.py`). Without one, everything here is a
look at one attribute. The tracer is ours alone: OpenTelemetry's global provider stays unset, so no
library makes spans.

A span shows no contents unless the operator wants that (`shows_contents`), and never an error's
message: a failure is the `type` of its error.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import (
    INVALID_SPAN,
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

__all__ = [
    "Context",
    "Span",
    "SpanKind",
    "continued",
    "current_trace_id",
    "current_traceparent",
    "entered",
    "fail",
    "get_current_span",
    "inject",
    "is_on",
    "remote_context",
    "shows_contents",
    "span",
    "spanned",
    "start",
    "trace_id_of",
    "use",
    "within",
]

P = ParamSpec("P")
T = TypeVar("T")

_PROPAGATOR = TraceContextTextMapPropagator()
_NO_SPAN = nullcontext(INVALID_SPAN)


class _Process:
    tracer: Tracer | None = None
    contents = False


def use(tracer: Tracer | None, *, contents: bool = False) -> None:
    """Makes `tracer` the process's own; None ends tracing. `contents`: spans may show them."""
    _Process.tracer, _Process.contents = tracer, contents


def is_on() -> bool:
    """Whether this process traces, sampled or not."""
    return _Process.tracer is not None


def shows_contents() -> bool:
    """Whether the operator wants to see prompts and answers in spans."""
    return _Process.contents


def span(
    name: str,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Mapping[str, Any] | None = None,
    *,
    parent: Context | None = None,
) -> AbstractContextManager[Span]:
    """Returns a context in which a new span is the current one; it ends with the context.

    What leaves the context makes the span fail (`fail`). Ask `is_recording()` of the span before
    you compute attributes. Not for generators: they would leave the span current in their callers.
    """
    if _Process.tracer is None:
        return _NO_SPAN
    begun = start(name, kind, attributes, parent=parent)
    return nullcontext(begun) if begun is get_current_span() else _Current(begun, ends=True)


async def spanned(
    name: str, work: Callable[P, Awaitable[T]], *args: P.args, **named: P.kwargs
) -> T:
    """Returns what `work` returns, called and awaited within a span."""
    with span(name):
        return await work(*args, **named)


def start(
    name: str,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Mapping[str, Any] | None = None,
    *,
    parent: Context | None = None,
) -> Span:
    """Returns a span that the caller ends, within the current span or `parent`.

    Within a trace that is not sampled it is the parent's: its children would be dropped, too.
    """
    if _Process.tracer is None:
        return INVALID_SPAN
    around = get_current_span(parent)
    known = around.get_span_context()
    if known.is_valid and not known.is_remote and not known.trace_flags.sampled:
        return around
    return _Process.tracer.start_span(name, parent, kind, attributes)


def entered(span: Span) -> AbstractContextManager[Span]:
    """Makes `span` the current one, and leaves it open."""
    return nullcontext(span) if span is get_current_span() else _Current(span)


def fail(span: Span, error: BaseException | str) -> None:
    """Marks `span` as failed, with the `type` of a leaf of ours, or the name of another class."""
    if not isinstance(error, str):
        leaf = getattr(error, "type", None)
        error = leaf if isinstance(leaf, str) else type(error).__name__
    span.set_attribute("error.type", error)
    span.set_status(StatusCode.ERROR)


def current_trace_id() -> str | None:
    """Returns the current trace's id, 32 hexadecimal digits, sampled or not; None outside one."""
    return None if _Process.tracer is None else trace_id_of(get_current_span())


def current_traceparent() -> str | None:
    """Returns W3C's `traceparent` of the current span, for a row that another process continues."""
    carrier: dict[str, str] = {}
    inject(carrier)
    return carrier.get("traceparent")


def continued(traceparent: str | None) -> Context:
    """Returns the context, for `parent`, of what was begun elsewhere; None begins a trace."""
    return remote_context({"traceparent": traceparent or ""})


def trace_id_of(span: Span) -> str | None:
    """Returns the id of the span's trace, as `current_trace_id`."""
    known = span.get_span_context()
    return format_trace_id(known.trace_id) if known.is_valid else None


def within(span: Span) -> Context:
    """Returns a context for `parent`: the children of `span`."""
    return set_span_in_context(span)


def inject(carrier: MutableMapping[str, str]) -> None:
    """Adds `traceparent`, and `tracestate` where there is one, of the current span to `carrier`."""
    if _Process.tracer is not None:
        _PROPAGATOR.inject(carrier)


def remote_context(carrier: Mapping[str, str]) -> Context:
    """Returns the caller's trace context, for `parent`; malformed headers count as none.

    `carrier` has its names in lower case.
    """
    if _Process.tracer is None or not carrier:
        return Context()
    return _PROPAGATOR.extract(carrier)


class _Current:
    """Makes a span the current one. A class, because generators cost more than the rest of it."""

    __slots__ = ("_ends", "_span", "_token")

    def __init__(self, span: Span, *, ends: bool = False) -> None:
        self._span, self._ends = span, ends

    def __enter__(self) -> Span:
        self._token = attach(set_span_in_context(self._span))
        return self._span

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        detach(self._token)
        if self._ends:
            if error is not None:
                fail(self._span, error)
            self._span.end()
