"""Looks at the graph's own applications over the ingress, as any client would."""

from __future__ import annotations

import aiohttp
from pydantic import ValidationError

from backends.http.bounded_body import BodyOverBound, read_whole
from contracts.errors import Unavailable
from contracts.health import Health

TIMEOUT_S = 1.5
MAX_BODY_BYTES = 256 << 10


class ApplicationHealth:
    """The `/health` of one application. `last` is what it answered last, whether ready or not."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self.last: Health | None = None

    async def probe(self) -> None:
        """Raises Unavailable unless the application says that it is ready."""
        try:
            timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
            async with self._session.get(
                self._url, timeout=timeout, allow_redirects=False
            ) as response:
                body = await read_whole(response, MAX_BODY_BYTES)
                status = response.status
            self.last = Health.model_validate_json(body)
        except (aiohttp.ClientError, TimeoutError):
            self.last = None
            raise Unavailable("the application does not answer") from None
        except (ValidationError, BodyOverBound):
            self.last = None
            raise Unavailable("the application is not deployed") from None
        if status != 200:
            raise Unavailable(_reason(self.last))


def _reason(health: Health) -> str:
    waiting = [
        f"{name}: {check.reason or check.state}"
        for name, check in health.checks.items()
        if check.required and check.state != "ready"
    ]
    return "; ".join(waiting) or health.status
