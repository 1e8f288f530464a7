"""Retries requests to our other applications, so that a replica that dies or restarts costs no
answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backends.http.client import JsonAnswer, JsonClient
from common.retry import retry
from contracts.deadline import Deadline
from contracts.errors import Unavailable, is_retryable


async def ask(
    http: JsonClient,
    path: str,
    deadline: Deadline,
    *,
    method: str = "POST",
    body: Any = None,
    params: Mapping[str, str | int] | None = None,
    headers: Mapping[str, str] | None = None,
    patience_s: float = 0.0,
) -> JsonAnswer:
    """Returns a successful answer.

    Retries for `patience_s` while the service is unreachable or unavailable; the request must be
    idempotent.

    Raises:
        DaarionError: the last refusal or failure.
    """

    async def attempt() -> JsonAnswer:
        answer = await http.request(
            method, path, deadline, body=body, params=params, headers=headers
        )
        if not answer.ok:
            raise http.refusal(answer)
        return answer

    return await retry(
        attempt,
        lambda error: isinstance(error, Unavailable) and is_retryable(error),
        within_s=deadline.at_most(patience_s),
    )
