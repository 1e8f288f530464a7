"""An outside policy service: what it is asked and answers, in DAARION's shape, and its port."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from contracts.access.principals import Principal, PrincipalKind
from contracts.identity import Tenant
from contracts.shapes import Frozen

Action = Literal["exec_tool", "send_message"]
ResourceType = Literal["tool", "agent"]

_ACTOR_TYPES: dict[PrincipalKind, str] = {"person": "human", "agent": "agent"}


class PolicyAnswer(Frozen):
    """The service's decision. `obligations` are conditions of a permit."""

    effect: Literal["permit", "deny"]
    reason: str | None = None
    obligations: Any = None


class PolicyService(Protocol):
    """Decides beside our own rules; without a configured service everything is permitted."""

    async def check(
        self, action: Action, resource: tuple[ResourceType, str], tenant: Tenant
    ) -> None:
        """Asks whether the principal at work may do this, for an agent in a microDAO.

        Raises:
            Forbidden: it may not; the message has the reason.
            PolicyUnavailable: the service gave no decision, and then nothing is permitted.
            Unavailable: whether there is a service is not known yet.
        """


def policy_question(
    principal: Principal, action: Action, resource: tuple[ResourceType, str], tenant: Tenant
) -> dict[str, Any]:
    """Returns the body of `POST /internal/pdp/evaluate`."""
    named = {name for name in principal.grants.microdaos if not name.endswith("*")}
    return {
        "actor": {
            "actor_id": principal.name,
            "actor_type": _ACTOR_TYPES.get(principal.grants.kind, "service"),
            "microdao_ids": sorted(named | {tenant.microdao_id}),
            "roles": ["operator"] if principal.is_operator else [],
        },
        "action": action,
        "resource": dict(zip(("type", "id"), resource, strict=True)),
        "context": {"agent_id": tenant.agent_id, "microdao_id": tenant.microdao_id},
    }
