"""JSON over HTTP to another service: pooled, with bounded answers, and failures in the product's
own errors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from common.http.client import open_client, read_bounded, requested
from common.http.errors import AnswerTooLarge, ConnectFailed, HttpError
from common.http.retry_after import retry_after_s
from contracts import errors
from contracts.deadline import Deadline
from contracts.errors import DaarionError, Unavailable, Unreachable, UpstreamInvalidResponse

MAX_ANSWER_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class JsonAnswer:
    """Status and parsed body; `body` is None if there was none."""

    status: int
    body: Any
    retry_after_s: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300


class JsonClient:
    """Calls one service, never through a proxy. `service` names it in errors; `secret` is sent if
    given.
    """

    def __init__(self, base_url: str, secret: str | None, *, service: str) -> None:
        self._service = service
        self._client = open_client(
            base_url=base_url.rstrip("/"), headers={"X-Internal-Secret": secret} if secret else None
        )

    async def request(
        self,
        method: str,
        path: str,
        deadline: Deadline,
        *,
        body: Any = None,
        params: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> JsonAnswer:
        """Returns the answer, whatever its status; redirects are not followed. `path` is quoted.

        Raises:
            DeadlineExceeded: the answer was not complete in time.
            Unreachable: no connection, so nothing was sent.
            Unavailable: the connection failed; the request may have been executed.
            UpstreamInvalidResponse: a 2xx without JSON, or an answer over 8 MiB.
        """
        deadline.check()
        sent = None if body is None else orjson.dumps(body)
        given = {
            **({} if sent is None else {"Content-Type": "application/json"}),
            **(headers or {}),
        }
        try:
            async with (
                asyncio.timeout(deadline.remaining()),
                requested(
                    self._client, method, path, content=sent, headers=given, params=params
                ) as response,
            ):
                data = await read_bounded(response, MAX_ANSWER_BYTES)
        except TimeoutError:
            raise deadline.exceeded() from None
        except AnswerTooLarge:
            raise UpstreamInvalidResponse(
                f"the answer of {self._service} is over {MAX_ANSWER_BYTES >> 20} MiB"
            ) from None
        except ConnectFailed:
            raise Unreachable(f"{self._service} cannot be reached: retry") from None
        except HttpError:
            raise Unavailable(f"{self._service} cannot be reached: retry") from None
        return JsonAnswer(
            response.status_code,
            self._parsed(response.status_code, data),
            retry_after_s(response.headers.get("Retry-After")),
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    def refusal(self, answer: JsonAnswer) -> DaarionError:
        """Returns the error that a refusal's envelope names, else one for its status."""
        error = answer.body.get("error") if isinstance(answer.body, dict) else None
        if isinstance(error, dict) and (leaf := LEAVES.get(str(error.get("type")))) is not None:
            return leaf(
                str(error.get("message", f"{self._service} refused"))[:1_000],
                retry_after_s=answer.retry_after_s,
            )
        leaf = _BY_STATUS.get(
            answer.status, Unavailable if answer.status >= 500 else errors.InvalidRequest
        )
        return leaf(
            f"{self._service} refused with status {answer.status}",
            retry_after_s=answer.retry_after_s,
        )

    def _parsed(self, status: int, data: bytes) -> Any:
        if not data.strip():
            return None
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError:
            if 200 <= status < 300:
                raise UpstreamInvalidResponse(f"{self._service} did not answer with JSON") from None
            return None


def _leaves(root: type[DaarionError]) -> Iterator[type[DaarionError]]:
    for leaf in root.__subclasses__():
        yield leaf
        yield from _leaves(leaf)


LEAVES = {leaf.type: leaf for leaf in _leaves(DaarionError)}
_BY_STATUS: dict[int, type[DaarionError]] = {
    401: errors.Unauthorized,
    403: errors.Forbidden,
    404: errors.NotFound,
    409: errors.Conflict,
    413: errors.PayloadTooLarge,
    429: errors.RateLimited,
    408: errors.DeadlineExceeded,
    504: errors.DeadlineExceeded,
}
