"""Retries requests to our other applications, so that a replica that dies or restarts costs no
answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from backends.http.client import JsonAnswer, JsonClient
from contracts.deadline import Deadline
from contracts.errors import DaarionError, Unavailable

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0


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
    until = deadline.sooner(patience_s)
    pause = FIRST_PAUSE_S
    while True:
        refusal: DaarionError
        try:
            answer = await http.request(
                method, path, deadline, body=body, params=params, headers=headers
            )
            if answer.ok:
                return answer
            refusal = http.refusal(answer)
        except Unavailable as error:
            refusal = error
        wait = max(pause, min(refusal.retry_after_s or 0.0, LONGEST_PAUSE_S))
        if not (isinstance(refusal, Unavailable) and refusal.retryable) or until.remaining() < wait:
            raise refusal
        await asyncio.sleep(wait)
        pause = min(2 * pause, LONGEST_PAUSE_S)
