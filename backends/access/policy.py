"""The PolicyService port over HTTP, with a memory of recent decisions."""

from __future__ import annotations

import time
from collections.abc import Callable

import orjson
from cachetools import LRUCache

from backends.http.client import ServiceClient, presenting
from configs.access import PolicyServiceSettings
from contracts.access.acting import acting
from contracts.access.policy import Action, PolicyAnswer, ResourceType, policy_question
from contracts.deadline import Deadline
from contracts.errors import DaarionError, Forbidden, PolicyUnavailable, UpstreamInvalidResponse
from contracts.events import EventLog
from contracts.identity import Tenant

PATH = "/internal/pdp/evaluate"
MAX_REMEMBERED = 4_096
MAX_REASON_CHARS = 200
RETRY_AFTER_S = 1.0


class PolicyServiceClient(ServiceClient):
    """Asks the service of `settings`, which are read at each question, and what they say counts.

    A failure is emitted once, until the service answers again.
    """

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
        self._away = False

    async def check(
        self, action: Action, resource: tuple[ResourceType, str], tenant: Tenant
    ) -> None:
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
                if not self._away:
                    self._events.emit("access.policy_away", error=error.type)
                self._away = True
                if settings.on_failure == "allow":
                    return
                raise PolicyUnavailable(
                    "the policy service gives no decision, so this is denied: retry",
                    retry_after_s=RETRY_AFTER_S,
                ) from None
            if self._away:
                self._events.emit("access.policy_back")
            self._away = False
            self._answers[question] = answer, time.monotonic() + settings.cache_s
        if answer.effect == "deny":
            reason = _clean(answer.reason or "")
            raise Forbidden("the policy service denies this" + (f": {reason}" if reason else ""))

    async def _asked(self, settings: PolicyServiceSettings, body: object) -> PolicyAnswer:
        """Returns a decision. Raises DaarionError for anything else."""
        headers = presenting(settings.secret(self._lookup))()
        deadline = Deadline.after(settings.timeout_s)
        answer = await self._ask(settings.url + PATH, deadline, body=body, headers=headers)
        found = self._read(answer, PolicyAnswer, "a decision")
        if found.effect == "permit" and found.obligations:
            raise UpstreamInvalidResponse("the policy service sets obligations: none is known here")
        return found


def _clean(reason: str) -> str:
    """Returns printable characters in one line: models and terminals read it."""
    shown = "".join(one if one.isprintable() else " " for one in reason[: 4 * MAX_REASON_CHARS])
    return " ".join(shown.split())[:MAX_REASON_CHARS]
