"""The PolicyService port over HTTP, with a memory of recent decisions."""

from __future__ import annotations

import time
from collections.abc import Callable

import orjson
from cachetools import LRUCache

from backends.http.client import ServiceClient, presenting
from configs.access import PolicyServiceSettings
from contracts.access.policy import Action, PolicyAnswer, policy_question
from contracts.access.principals import acting
from contracts.deadline import Deadline
from contracts.errors import DaarionError, Forbidden, PolicyUnavailable, UpstreamInvalidResponse
from contracts.events import EventLog
from contracts.identity import Tenant

PATH = "/internal/pdp/evaluate"
MAX_REMEMBERED = 4_096
MAX_REASON_CHARS = 200


class PolicyServiceClient(ServiceClient):
    """Asks the service that `settings` name at that moment."""

    service = "the policy service"

    def __init__(
        self,
        settings: Callable[[], PolicyServiceSettings | None],
        lookup: Callable[[str], str | None],
        events: EventLog,
    ) -> None:
        """`lookup` reads a variable of the environment."""
        super().__init__("", dict)
        self._settings = settings
        self._lookup = lookup
        self._events = events
        self._answers: LRUCache[bytes, tuple[PolicyAnswer, float]] = LRUCache(MAX_REMEMBERED)

    async def check(self, action: Action, resource: tuple[str, str], tenant: Tenant) -> None:
        settings = self._settings()
        if settings is None:
            return
        body = policy_question(acting(), action, resource, tenant)
        question = orjson.dumps([settings.url, body])
        answer, until = self._answers.get(question, (None, 0.0))
        if answer is None or until <= time.monotonic():
            try:
                answer = await self._asked(settings, body)
            except DaarionError as error:
                self._events.emit("access.policy_failed", action=action, error=error.type)
                if settings.on_failure == "allow":
                    return
                raise PolicyUnavailable(
                    "the policy service gives no decision, so this is denied: retry",
                    retry_after_s=1.0,
                ) from None
            self._answers[question] = answer, time.monotonic() + settings.cache_s
        if answer.effect == "deny":
            reason = _clean(answer.reason or "") or "it gives no reason"
            raise Forbidden(f"the policy service denies this: {reason}")

    async def _asked(self, settings: PolicyServiceSettings, body: object) -> PolicyAnswer:
        """Returns a decision. Raises DaarionError for anything else."""
        answer = await self._ask(
            settings.url + PATH,
            Deadline.after(settings.timeout_s),
            body=body,
            headers=presenting(settings.secret(self._lookup))(),
        )
        found = self._read(answer, PolicyAnswer, "a decision")
        if found.effect == "permit" and found.obligations:
            raise UpstreamInvalidResponse("the policy service sets obligations: none is known here")
        return found


def _clean(reason: str) -> str:
    """Returns printable characters in one line: models and terminals read it."""
    shown = "".join(one if one.isprintable() else " " for one in reason[: 4 * MAX_REASON_CHARS])
    return " ".join(shown.split())[:MAX_REASON_CHARS]
