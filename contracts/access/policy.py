"""An outside policy service: what it is asked and answers, in DAARION's shape, and its port."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from contracts.access.principals import Principal
from contracts.identity import Tenant
from contracts.shapes import Frozen

Action = Literal["exec_tool", "send_message"]


class PolicyAnswer(Frozen):
    """The service's decision. `obligations` are conditions of a permit."""

    effect: Literal["permit", "deny"]
    reason: str | None = None
    obligations: Any = None


class PolicyService(Protocol):
    """Decides beside our own rules; without a configured service everything is permitted."""

    async def check(self, action: Action, resource: tuple[str, str], tenant: Tenant) -> None:
        """Asks whether the principal at work may do this, for an agent in a microDAO.

        `resource` is its type (`tool`, `agent`) and its id.

        Raises:
            Forbidden: it may not; the message has the reason.
            PolicyUnavailable: the service gave no decision, and then nothing is permitted.
            Unavailable: whether there is a service is not known yet.
        """


def policy_question(
    principal: Principal, action: Action, resource: tuple[str, str], tenant: Tenant
) -> dict[str, Any]:
    """Returns the body of `POST /internal/pdp/evaluate`."""
    return {
        "actor": {
            "actor_id": principal.name,
            "actor_type": {"person": "human", "agent": "agent"}.get(
                principal.grants.kind, "service"
            ),
            "microdao_ids": sorted(
                {tenant.microdao_id}
                | {name for name in principal.grants.microdaos if not name.endswith("*")}
            ),
            "roles": ["operator"] if principal.is_operator else [],
        },
        "action": action,
        "resource": dict(zip(("type", "id"), resource, strict=True)),
        "context": {"agent_id": tenant.agent_id, "microdao_id": tenant.microdao_id},
    }
