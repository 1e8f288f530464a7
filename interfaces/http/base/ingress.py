"""The outermost layer of every application: request id, credentials, bounded concurrency, errors.

Pure ASGI: a relayed call pays for one function instead of a stack of middlewares.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter
from types import MappingProxyType

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from common import tracing
from contracts.access.principals import act_as
from contracts.errors import (
    DaarionError,
    Forbidden,
    MethodNotAllowed,
    NotFound,
    RequestTimeout,
    Unauthorized,
)
from contracts.events import EventLog
from contracts.identity import is_plain
from interfaces.http.base.access import AccessControl, header
from interfaces.http.base.audit import READS, REFUSED, action_of, is_audited, refusal_of
from interfaces.http.base.bodies import MAX_BODY_BYTES, read_json
from interfaces.http.base.errors import as_leaf, error_response
from interfaces.http.base.request_slots import (
    BODY_S,
    UPLOAD_S,
    WITH_BODY,
    RequestSlot,
    RequestSlots,
)
from interfaces.http.base.routing import HotRoute, fixed_routes
from interfaces.http.base.server_span import METHODS, REFUSAL, traced
from services.access.audit import AuditTrail

MAX_URL_BYTES = 8_192
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
HEALTH_PATHS = frozenset({"/health", "/health/live"})

IsAdmin = Callable[[str, str], bool]
"""Whether a method and path below the prefix are for operators."""

ErrorShape = Callable[[DaarionError, str], Response]
"""Renders an error and the request id as an answer."""


class Ingress:
    """Wraps one application's router.

    `application` is the name that principals are granted. `max_concurrent` bounds the running
    requests; further ones are refused at once with 503 and `Retry-After`. A request runs once its
    whole body has arrived, see `request_slots`. What operators do is recorded before it is served,
    and what is refused to callers after, see `audit`.
    `uploads` are paths below the prefix whose bodies may take `UPLOAD_S`. Open paths (health) need
    no credential and are never refused. `error_shapes` maps a path below the prefix (`/v1`), or a
    method and a path (`POST /call`), to the shape of every error there and below, including those
    of routing, credentials and load; elsewhere it is the envelope.
    """

    def __init__(
        self,
        router: APIRouter,
        access: AccessControl,
        events: EventLog,
        *,
        max_concurrent: int,
        application: str | None = None,
        is_admin: IsAdmin = lambda _method, _path: False,
        open_paths: frozenset[str] = HEALTH_PATHS,
        uploads: frozenset[str] = frozenset(),
        on_shutdown: Callable[[], Awaitable[None]] | None = None,
        error_shapes: Mapping[str, ErrorShape] = MappingProxyType({}),
    ) -> None:
        router.default = _no_such_route
        self._app = router
        self._hot = fixed_routes(router)
        self._access = access
        self._audit = access.audit
        self._events = events
        self._slots = RequestSlots(max_concurrent)
        self._application = application
        self._is_admin = is_admin
        self._open = open_paths
        self._uploads = uploads
        self._on_shutdown = on_shutdown
        self._error_shapes = error_shapes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request; every error is answered in its route's error shape."""
        if scope["type"] != "http":
            await self._lifespan(scope, receive, send)
            return
        path = _normalise_path(scope)
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        slot = RequestSlot(
            self._slots, receive, send, UPLOAD_S if path in self._uploads else BODY_S
        )
        answer = self._answer(scope, slot, path, request_id)
        if path in self._open:
            await answer
            return
        began = perf_counter()
        try:
            await (traced(scope, slot, answer) if tracing.is_on() else answer)
        finally:
            self._count(scope, slot, 1000 * (perf_counter() - began))

    async def _answer(self, scope: Scope, slot: RequestSlot, path: str, request_id: str) -> None:
        try:
            # A pattern of Starlette ends before a final line feed, an exact comparison does not.
            if len(scope["path"]) > MAX_URL_BYTES or not is_plain(scope["path"]):
                raise _unknown_route()
            if path in self._open:
                scope["state"]["sees_details"] = self._sees_details(scope)
                await self._app(scope, slot.receive, slot.send)
                return
            audit = self._audit if self._admit(scope, path) else None
            await self._bounded(scope, slot, self._hot.get((scope["method"], path)), audit)
        except ClientDisconnect:
            return  # the client left in the middle of its request: there is nobody to answer
        except Exception as error:  # noqa: BLE001  # nothing leaves without an error shape
            await self._refuse(error, scope, slot, request_id)

    def _count(self, scope: Scope, slot: RequestSlot, duration_ms: float) -> None:
        refusal = scope["state"].get(REFUSAL)
        self._events.emit(
            "http.request",
            method=scope["method"] if scope["method"] in METHODS else "_OTHER",
            route=getattr(scope.get("route"), "path", None),
            status=slot.status,
            error=refusal,
            failed=refusal and 1,
            duration_ms=duration_ms,
        )

    def _admit(self, scope: Scope, path: str) -> bool:
        """Finds out who calls; returns whether the request must be recorded before it is served.

        Raises Forbidden for an application or a route not meant for the caller.
        """
        principal = scope["state"]["principal"] = self._access.check(scope["headers"])
        if self._application is not None:
            principal.check_application(self._application)
        is_admin = self._is_admin(scope["method"], path)
        if is_admin and not principal.is_operator:
            raise Forbidden("this route needs an operator's key, or the admin secret")
        scope["state"]["credential"] = principal.credential
        scope["state"]["admit"] = self._admit  # for answers that outlive a change of grants
        act_as(principal)
        return is_admin and is_audited(scope["method"], path)

    def _sees_details(self, scope: Scope) -> bool:
        """Whether the caller of an open route presents a valid credential, if any is demanded."""
        try:
            self._access.check(scope["headers"])
        except DaarionError as error:
            self._note_refusal(error, scope)
            return False
        return True

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers the server's start and stop; closes websockets, which no application serves."""
        if scope["type"] != "lifespan":
            await send({"type": "websocket.close", "code": 1003})
            return
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown" and self._on_shutdown is not None:
                await self._on_shutdown()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return

    async def _bounded(
        self, scope: Scope, slot: RequestSlot, hot: HotRoute | None, audit: AuditTrail | None
    ) -> None:
        try:
            await slot.start(scope["method"])
            if audit is not None:
                await self._recorded(scope, slot, audit)
            elif hot is None:
                await self._app(scope, slot.receive, slot.send)
            else:
                scope["route"] = hot
                response = await hot.handler(Request(scope, slot.receive))
                await response(scope, slot.receive, slot.send)
            if REFUSED in scope["state"]:
                self._note_refusal(scope["state"][REFUSED], scope)
        finally:
            slot.release()

    async def _recorded(self, scope: Scope, slot: RequestSlot, audit: AuditTrail) -> None:
        """Serves an action once its body is there and it is recorded.

        It is not served, and not recorded, where this raises.

        Raises:
            DatabaseUnavailable: it cannot be recorded.
            PayloadTooLarge: its body is too large.
            UnsupportedMediaType: its body is not JSON.
        """
        body: bytes | None = b""
        if scope["method"] in READS or _below(scope) in self._uploads:
            body = None
        elif scope["method"] in WITH_BODY:
            body = await read_json(Request(scope, slot.receive), MAX_BODY_BYTES)
            slot.unread(body)
        action = action_of(scope, body)
        await audit.store.add([action])
        try:
            await self._app(scope, slot.receive, slot.send)
        finally:
            audit.note(action.ended("success" if 0 < slot.status < 400 else "failure"))

    def _note_refusal(self, error: Exception, scope: Scope) -> None:
        if self._audit is not None and (refusal := refusal_of(scope, error)) is not None:
            self._audit.note(refusal)

    async def _refuse(
        self, error: Exception, scope: Scope, slot: RequestSlot, request_id: str
    ) -> None:
        self._note_refusal(error, scope)
        allowed, api_error = None, as_leaf(error)
        if isinstance(error, HTTPException) and error.status_code == 405:
            allowed = _methods(self._app, scope)
            api_error = MethodNotAllowed(
                f"this route does not take that method; allowed: {allowed}"
            )
        scope["state"][REFUSAL] = api_error.type
        if api_error.status >= 500 and not isinstance(error, DaarionError):
            self._events.emit(
                "http.defect",
                request_id=request_id,
                path=scope["path"],
                error=type(error).__name__,
                exc_info=error,
            )
        if slot.status:
            # The status was sent: only a broken connection shows that the body is incomplete.
            raise error
        response = self._error_shape(scope)(api_error, request_id)
        if isinstance(api_error, RequestTimeout):
            response.raw_headers.append(
                (b"connection", b"close")
            )  # the rest of the body is not read
        if isinstance(api_error, Unauthorized):
            response.raw_headers.append((b"www-authenticate", b"Bearer"))
        if allowed is not None:
            response.raw_headers.append((b"allow", allowed.encode()))
        await response(scope, slot.receive, slot.send)

    def _error_shape(self, scope: Scope) -> ErrorShape:
        below = _below(scope)
        for route, shape in self._error_shapes.items():
            method, _, path = route.rpartition(" ")
            if method in {"", scope["method"]} and f"{below}/".startswith(f"{path}/"):
                return shape
        return error_response


async def _no_such_route(scope: Scope, _receive: Receive, _send: Send) -> None:
    if scope["type"] == "http":
        raise _unknown_route()


def _unknown_route() -> NotFound:
    return NotFound("no such route: see /docs")


def _methods(router: APIRouter, scope: Scope) -> str:
    """Returns the methods of every route with this path; Starlette names those of the first."""
    routes = [route for route in router.routes if isinstance(route, Route)]
    found = [route.methods or () for route in routes if route.matches(scope)[0] is not Match.NONE]
    return ", ".join(sorted(set().union(*found)))


def _normalise_path(scope: Scope) -> str:
    """Drops a trailing slash in `scope`; returns the path below the application's prefix."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    trimmed = path.removeprefix(root).rstrip("/")
    scope["path"] = f"{root}{trimmed}" if trimmed or root else "/"
    # With an `app` in the scope, Starlette raises 404 and 405 instead of answering them itself.
    scope["app"] = scope.get("app", _no_such_route)
    return trimmed or "/"


def _below(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _request_id(scope: Scope) -> str:
    given = header(scope["headers"], b"x-request-id").decode("latin-1")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
