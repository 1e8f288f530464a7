"""JSON over HTTP to another service: pooled, with bounded answers, retries, and failures in the
product's own errors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from common.http.client import open_client, read_bounded, requested
from common.http.errors import AnswerTooLarge, ConnectFailed, HttpError
from common.http.retry_after import retry_after_s
from common.retry import retry
from common.tracing import inject
from contracts import errors
from contracts.deadline import Deadline
from contracts.errors import (
    DaarionError,
    Unavailable,
    Unreachable,
    UpstreamInvalidResponse,
    is_retryable,
)

MAX_ANSWER_BYTES = 8 << 20
Credentials = Callable[[], Mapping[str, str]]

Shape = TypeVar("Shape", bound=BaseModel)


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


class ServiceClient:
    """Calls one service, never through a proxy; each service has a subclass.

    The current trace goes with each request: it is this graph, or a neighbour that the operator
    named. `service` names it in errors; `credentials` returns the headers that present us, at each
    call. `patience_s` is for subclasses: how long they retry what may be repeated.
    """

    service: ClassVar[str]

    def __init__(self, base_url: str, credentials: Credentials, *, patience_s: float = 0.0) -> None:
        self._credentials = credentials
        self._patience_s = patience_s
        self._client = open_client(base_url=base_url.rstrip("/"))

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def _ask(
        self,
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

        Retries for `patience_s` while the service is unreachable or unavailable, so that a replica
        that dies or restarts costs no answer; the request must be idempotent.

        Raises:
            DaarionError: the last refusal or failure.
        """

        async def attempt() -> JsonAnswer:
            answer = await self._request(
                method, path, deadline, body=body, params=params, headers=headers
            )
            if not answer.ok:
                raise self._refusal(answer)
            return answer

        return await retry(
            attempt,
            lambda error: isinstance(error, Unavailable) and is_retryable(error),
            within_s=deadline.at_most(patience_s),
        )

    def _read(self, answer: JsonAnswer, shape: type[Shape], what: str) -> Shape:
        """Returns the answer's body. Raises UpstreamInvalidResponse where it is not `what`."""
        try:
            return shape.model_validate(answer.body)
        except ValidationError:
            raise UpstreamInvalidResponse(f"{self.service} did not answer with {what}") from None

    async def _request(
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
            Unavailable: the connection failed (the request may have been executed), or our own
                credentials are not known yet.
            UpstreamInvalidResponse: a 2xx without JSON, or an answer over 8 MiB.
        """
        deadline.check()
        sent = None if body is None else orjson.dumps(body)
        given = {
            **self._credentials(),
            **({} if sent is None else {"Content-Type": "application/json"}),
            **(headers or {}),
        }
        inject(given)
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
                f"the answer of {self.service} is over {MAX_ANSWER_BYTES >> 20} MiB"
            ) from None
        except ConnectFailed:
            raise Unreachable(f"{self.service} cannot be reached: retry") from None
        except HttpError:
            raise Unavailable(f"{self.service} cannot be reached: retry") from None
        return JsonAnswer(
            response.status_code,
            self._parsed(response.status_code, data),
            retry_after_s(response.headers.get("Retry-After")),
        )

    def _refusal(self, answer: JsonAnswer) -> DaarionError:
        """Returns the error that a refusal's envelope names, else one for its status."""
        error = answer.body.get("error") if isinstance(answer.body, dict) else None
        if isinstance(error, dict) and (leaf := LEAVES.get(str(error.get("type")))) is not None:
            return leaf(
                str(error.get("message", f"{self.service} refused"))[:1_000],
                retry_after_s=answer.retry_after_s,
            )
        leaf = _BY_STATUS.get(
            answer.status, Unavailable if answer.status >= 500 else errors.InvalidRequest
        )
        return leaf(
            f"{self.service} refused with status {answer.status}",
            retry_after_s=answer.retry_after_s,
        )

    def _parsed(self, status: int, data: bytes) -> Any:
        if not data.strip():
            return None
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError:
            if 200 <= status < 300:
                raise UpstreamInvalidResponse(f"{self.service} did not answer with JSON") from None
            return None


def _leaves(root: type[DaarionError]) -> Iterator[type[DaarionError]]:
    for leaf in root.__subclasses__():
        yield leaf
        yield from _leaves(leaf)


def presenting(secret: str | None) -> Credentials:
    """Returns the credentials of a neighbour that knows us by one secret, if by any."""
    headers = {"X-Internal-Secret": secret} if secret else {}
    return lambda: headers


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
