"""Errors in OpenAI's shape, for the routes below `/v1`."""

from __future__ import annotations

import math
from typing import Any

from contracts.errors import DaarionError, Forbidden, RateLimited, Unauthorized
from interfaces.http.errors import JsonResponse


def openai_error_response(error: DaarionError, request_id: str) -> JsonResponse:
    """Returns `{"error": {"message", "type", "param", "code"}}` with the leaf's status; `code` is our own type.

    `request_id`, `retryable` and `details` stand beside them, as in the envelope.
    """
    headers = {"x-should-retry": str(error.retryable).lower()}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    body: dict[str, Any] = {"message": error.message, "type": _type(error), "param": None, "code": error.type}
    body |= {"retryable": error.retryable, "request_id": request_id}
    if error.details:
        body["details"] = error.details
    return JsonResponse({"error": body}, status_code=error.status, headers=headers)


def _type(error: DaarionError) -> str:
    if isinstance(error, Unauthorized | Forbidden):
        return "authentication_error"
    if isinstance(error, RateLimited):
        return "rate_limit_error"
    return "invalid_request_error" if error.status < 500 else "server_error"
