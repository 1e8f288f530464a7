"""Errors in OpenAI's shape, for the routes below `/v1`."""

from __future__ import annotations

import math
from typing import Any

from contracts.errors import DaarionError, Forbidden, RateLimited, Unauthorized
from interfaces.http.base.errors import JsonResponse


def openai_error_response(error: DaarionError, request_id: str) -> JsonResponse:
    """Returns the body with the leaf's status; headers tell OpenAI's clients whether to retry."""
    headers = {"x-should-retry": str(error.retryable).lower()}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    return JsonResponse(
        openai_error_body(error, request_id), status_code=error.status, headers=headers
    )


def openai_error_body(error: DaarionError, request_id: str) -> dict[str, Any]:
    """Returns `{"error": {"message", "type", "param", "code"}}`; `code` is our own type.

    `request_id`, `retryable` and `details` stand beside them, as in the envelope.
    """
    body: dict[str, Any] = {
        "message": error.message,
        "type": _type(error),
        "param": _param(error),
        "code": error.type,
    }
    body |= {"retryable": error.retryable, "request_id": request_id}
    if error.details:
        body["details"] = error.details
    return {"error": body}


def _param(error: DaarionError) -> str | None:
    """Returns the first invalid field, if any."""
    mistakes = (error.details or {}).get("mistakes")
    return mistakes[0]["field"] or None if mistakes else None


def _type(error: DaarionError) -> str:
    if isinstance(error, Unauthorized | Forbidden):
        return "authentication_error"
    if isinstance(error, RateLimited):
        return "rate_limit_error"
    return "invalid_request_error" if error.status < 500 else "server_error"


OPENAI_ERRORS = {"/v1": openai_error_response}
"""For the ingress: everything below `/v1` answers its errors in this shape."""
