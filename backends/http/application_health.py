"""The health of the graph's own applications, read over the ingress as any client would."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import httpx2
from pydantic import ValidationError

from common.http.client import read_bounded, requested
from common.http.errors import HttpError, MalformedAnswer
from contracts.errors import Unavailable
from contracts.health import Health

TIMEOUT_S = 1.5
MAX_BODY_BYTES = 256 << 10


class ApplicationHealth:
    """The `/health` of one application. `last` is its latest answer, whether ready or not.

    `credential` returns the headers of a call, by which the application shows its checks.
    """

    def __init__(
        self,
        client: httpx2.AsyncClient,
        url: str,
        credential: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._client = client
        self._url = url
        self._credential = credential
        self.last: Health | None = None

    async def probe(self) -> None:
        """Raises Unavailable unless the application says that it is ready, and before the store of
        keys was read, without which none is.
        """
        headers = self._credential()
        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                requested(self._client, "GET", self._url, headers=headers) as response,
            ):
                body = await read_bounded(response, MAX_BODY_BYTES)
            self.last = Health.model_validate_json(body)
        except (ValidationError, MalformedAnswer):
            self.last = None
            raise Unavailable("the application is not deployed") from None
        except (HttpError, TimeoutError):
            self.last = None
            raise Unavailable("the application does not answer") from None
        if response.status_code != 200:
            raise Unavailable(_reason(self.last))


def _reason(health: Health) -> str:
    waiting = [
        f"{name}: {check.reason or check.state}"
        for name, check in health.checks.items()
        if check.required and check.state != "ready"
    ]
    return "; ".join(waiting) or health.status
