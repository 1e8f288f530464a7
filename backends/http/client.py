"""JSON over HTTP to another service: one pooled client, bounded answers, failures in the product's own errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
from yarl import URL

from backends.http.bounded_body import BodyOverBound, read_whole
from common.retry_after import retry_after_s
from contracts import errors
from contracts.deadline import Deadline
from contracts.errors import DaarionError, Unavailable, Unreachable, UpstreamInvalidResponse

MAX_ANSWER_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class JsonAnswer:
    """Status and parsed body; `body` is None where there was none."""

    status: int
    body: Any
    retry_after_s: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300


class JsonClient:
    """Calls one service. `service` names it in errors; `secret` is sent where there is one."""

    def __init__(self, base_url: str, secret: str | None, *, service: str) -> None:
        headers = {"X-Internal-Secret": secret} if secret else {}
        self._base = base_url.rstrip("/")
        self._service = service
        self._session = aiohttp.ClientSession(headers=headers, trust_env=False)

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
        """Returns the answer, whatever its status. `path` is quoted already; redirects are answers.

        Raises:
            DeadlineExceeded: no whole answer in time.
            Unreachable: no connection, so nothing was sent.
            Unavailable: the connection failed, and nobody knows what became of the request.
            UpstreamInvalidResponse: a 2xx that is no JSON, or an answer over 8 MiB.
        """
        deadline.check()
        url = URL(f"{self._base}{path}", encoded=True)
        if params:
            url = url.update_query(params)
        sent = None if body is None else orjson.dumps(body)
        given = {
            **({} if sent is None else {"Content-Type": "application/json"}),
            **(headers or {}),
        }
        timeout = aiohttp.ClientTimeout(total=deadline.remaining())
        try:
            async with self._session.request(
                method, url, data=sent, headers=given, timeout=timeout, allow_redirects=False
            ) as response:
                data = await read_whole(response, MAX_ANSWER_BYTES)
                return JsonAnswer(
                    response.status,
                    self._parsed(response.status, data),
                    retry_after_s(response.headers.get("Retry-After")),
                )
        except TimeoutError:
            raise deadline.exceeded() from None
        except BodyOverBound:
            raise UpstreamInvalidResponse(
                f"the answer of {self._service} is over {MAX_ANSWER_BYTES >> 20} MiB"
            ) from None
        except aiohttp.ClientConnectorError:
            raise Unreachable(f"{self._service} cannot be reached: retry") from None
        except (aiohttp.ClientError, ValueError):  # the latter: a URL or header that cannot be sent
            raise Unavailable(f"{self._service} cannot be reached: retry") from None

    async def close(self) -> None:
        """Closes the connections."""
        await self._session.close()

    def refusal(self, answer: JsonAnswer) -> DaarionError:
        """Returns the leaf that the envelope of a refusal names, or else one for its status."""
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
