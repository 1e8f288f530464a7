"""The body of a call's answer, the same over HTTP, NATS and handles."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from contracts.errors import (
    DaarionError,
    Forbidden,
    InvalidRequest,
    PayloadTooLarge,
    Unauthorized,
    UnsupportedMediaType,
)
from contracts.tools.api import ErrorKind, ToolCallRequest, ToolCallResult
from interfaces.http.base.errors import invalid_body
from services.tools.calls import ToolCalls


def call_body(result: ToolCallResult) -> dict[str, Any]:
    """Returns the body of an answer, without absent fields; a success always has a `result`."""
    body = {name: value for name, value in result if value is not None}
    if result.ok:
        body["result"] = result.result
    if result.result_ref is not None:
        body["result_ref"] = result.result_ref.model_dump(exclude_none=True)
    return body


def unreadable(
    error: ValidationError | DaarionError, request_id: str | None = None
) -> ToolCallResult:
    """Returns the answer to a request that could not be read as a call, or is not its sender's."""
    leaf = invalid_body(error) if isinstance(error, ValidationError) else error
    kind: ErrorKind = "invalid_args"
    if isinstance(leaf, PayloadTooLarge):
        kind = "too_large"
    elif isinstance(leaf, Unauthorized | Forbidden):
        kind = "denied"
    elif not isinstance(leaf, InvalidRequest | UnsupportedMediaType):
        kind = "unavailable" if leaf.retryable else "internal"
    return ToolCallResult(
        ok=False,
        error=leaf.message,
        error_kind=kind,
        retryable=leaf.retryable,
        request_id=request_id,
    )


async def answer_handle(
    calls: ToolCalls, request: dict[str, Any], request_id: str
) -> dict[str, Any]:
    """Runs a call from a Serve handle, plain values in and out."""
    try:
        wanted = ToolCallRequest.model_validate(request)
    except ValidationError as error:
        return call_body(unreadable(error, request_id))
    return call_body((await calls.call(wanted, via="handle", request_id=request_id)).result)
