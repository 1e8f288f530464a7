"""The one mapping from errors to HTTP."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from contracts.errors import DaarionError, Internal, InvalidRequest, NotFound

JSON = "application/json"
_CONTENT_TYPE = (b"content-type", JSON.encode())
_MAX_MISTAKES = 5
# FastAPI validates Python values, and pydantic then names Python's types: callers sent JSON.
_OBJECT, _ARRAY = "Input should be an object", "Input should be a valid array"
_PROBLEMS = {
    "extra_forbidden": "unknown field",
    "missing": "required",
    "model_attributes_type": _OBJECT,
    "model_type": _OBJECT,
    "dict_type": _OBJECT,
    "list_type": _ARRAY,
    "tuple_type": _ARRAY,
}


class JsonResponse(Response):
    """A JSON body, written by orjson unless it is bytes.

    Its constructor does not call the base class: that costs more than the rest of a short answer.
    """

    media_type = JSON

    def __init__(
        self, content: Any, status_code: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        self.status_code = status_code
        self.background = None
        self.body = content if isinstance(content, bytes) else orjson.dumps(content)
        self.raw_headers = [(b"content-length", b"%d" % len(self.body)), _CONTENT_TYPE]
        if headers:
            self.raw_headers += [
                (name.lower().encode("latin-1"), value.encode("latin-1"))
                for name, value in headers.items()
            ]

    async def __call__(
        self,
        scope: Scope,  # noqa: ARG002  # the ASGI signature
        receive: Receive,  # noqa: ARG002  # the ASGI signature
        send: Send,
    ) -> None:
        """Sends the response."""
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        await send({"type": "http.response.body", "body": self.body})


class NdjsonResponse(StreamingResponse):
    """Lines of JSON, sent as they come."""

    media_type = "application/x-ndjson"


def error_response(error: DaarionError, request_id: str) -> JsonResponse:
    """Returns the envelope with the leaf's status and, where it is known, `Retry-After`."""
    return JsonResponse(
        error.envelope(request_id), status_code=error.status, headers=retry_headers(error)
    )


def retry_headers(error: DaarionError) -> dict[str, str]:
    """Returns `Retry-After` in whole seconds, where it is known."""
    wait_s = error.retry_after_s
    return {} if wait_s is None else {"Retry-After": str(max(1, math.ceil(wait_s)))}


def as_leaf(error: Exception) -> DaarionError:
    """Returns the leaf of what a route raised; foreign errors become Internal without text."""
    if isinstance(error, DaarionError):
        return error
    if isinstance(error, RequestValidationError):
        return _wrong_fields([{**it, "loc": it["loc"][1:]} for it in error.errors()])
    if isinstance(error, ValidationError):
        return invalid_body(error)
    if isinstance(error, HTTPException) and error.status_code == 404:
        return NotFound("no such route: see /docs")
    return Internal("an internal error; its details are in the log under this request id")


def invalid_body(error: ValidationError) -> InvalidRequest:
    """Returns a 400 that names each wrong field and what was expected, without the values."""
    return _wrong_fields(
        error.errors(include_url=False, include_input=False, include_context=False)
    )


def _wrong_fields(mistakes: Sequence[Any]) -> InvalidRequest:
    listed = [
        {"field": _path(mistake["loc"]), "problem": _problem(mistake)}
        for mistake in _distinct(mistakes)
    ]
    first = "; ".join(
        f"{entry['field']}: {entry['problem']}" if entry["field"] else entry["problem"]
        for entry in listed
    )
    return InvalidRequest(first, details={"mistakes": listed})


def _distinct(mistakes: Sequence[Any]) -> list[Any]:
    """The first mistakes, and of a union's branches only the first: the others would confuse."""
    seen, kept = set(), []
    for mistake in mistakes:
        key = tuple(part for part in mistake["loc"] if not _is_branch(part))
        if key not in seen:
            seen.add(key)
            kept.append(mistake)
    return kept[:_MAX_MISTAKES]


def _is_branch(part: int | str) -> bool:
    """Pydantic names union members within the path: `list[…]`, `str`, `function-after[…]`."""
    return isinstance(part, str) and ("[" in part or part in {"str", "NamedToolChoice"})


def _path(loc: tuple[int | str, ...]) -> str:
    path = ""
    for part in loc:
        if _is_branch(part):
            continue
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


def _problem(mistake: Any) -> str:
    kind, message = mistake["type"], str(mistake["msg"])
    if kind in _PROBLEMS:
        return _PROBLEMS[kind]
    if kind == "json_invalid":
        return f"not valid JSON: {message.removeprefix('Invalid JSON: ')}"
    return message.removeprefix("Value error, ")
