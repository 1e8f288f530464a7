"""Principals: who calls, what each of them may do, and for whom the present work is done.

Ways in set the principal of their task; clients of our own applications read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints

from contracts.errors import DaarionError, Forbidden, InvalidRequest
from contracts.identity import Pattern, Tenant, is_plain, matches
from contracts.llm.limits import ANONYMOUS, Dollars, RateSettings
from contracts.shapes import Strict
from contracts.tools.api import tool_id_of

INTERNAL = "internal"
OPERATOR = "operator"
ISSUED_PREFIX = "jwt:"
SEE_ME = "GET /internal/access/me shows what it may do"
_SHOWN_CHARS = 100

Application = Literal["llm", "memory", "tools", "agents", "workspace"]
PrincipalKind = Literal["service", "agent", "person", "operator"]


def _free(name: str) -> str:
    if name in {ANONYMOUS, INTERNAL, OPERATOR} or name.startswith(("key-", ISSUED_PREFIX)):
        raise ValueError("this name is the product's own: choose another")
    return name


PrincipalName = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._:@-]{0,127}$"), AfterValidator(_free)
]
"""The name of a principal; limits and the usage ledger know its calls by it."""
Patterns = Annotated[list[Pattern], Field(max_length=1_000)]
Subject = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9_-]+(\.([A-Za-z0-9_-]+|\*))*(\.>)?$", max_length=256),
]
"""A NATS subject, or a pattern of subjects: `*` is one token, `>` all that follow."""


class Grants(Strict):
    """What a principal may do.

    `agents` are the ids that it may act as, or let act: agents, and senders of messages.
    `microdaos` are those that it may act in. Null `applications`, `models` and `tools` mean all of
    them. `limits` are those of its calls together, beside the limits of `llm.yaml`;
    `max_cost_per_run` bounds the dollars of one run of an agent. `reply_subjects` are NATS subjects
    where it may have answers sent, beside its own inbox. An `operator` may do everything.
    """

    kind: PrincipalKind = "service"
    agents: Patterns = Field(default=[])
    microdaos: Patterns = Field(default=[])
    applications: list[Application] | None = None
    models: Patterns | None = None
    tools: Patterns | None = None
    limits: RateSettings = RateSettings()
    max_cost_per_run: Dollars | None = None
    reply_subjects: list[Subject] = Field(default=[], max_length=100)


class Names:
    """The ids that patterns name; None names all."""

    def __init__(self, patterns: Iterable[str] | None) -> None:
        listed = None if patterns is None else list(patterns)
        self.all = listed is None or "*" in listed
        self.none = listed == []
        self.sole = listed[0] if listed and len(listed) == 1 and listed[0][-1] != "*" else None
        self._listed = listed or []
        self._literal = frozenset(self._listed)

    def __contains__(self, value: str) -> bool:
        return (
            self.all
            or value in self._literal
            or any(matches(pattern, value) for pattern in self._listed)
        )


@dataclass(frozen=True)
class Principal:
    """Who calls.

    `credential` is the name by which limits and ledger know it. `tenant` is set where it acts for
    one agent in one microDAO alone, as a run of that agent does. `issued` are claims of an identity
    provider: no store knows such a principal.
    """

    name: str
    grants: Grants
    credential: str
    tenant: Tenant | None = None
    issued: bool = False

    @property
    def is_operator(self) -> bool:
        """Whether it may administer, and see all tenants together."""
        return self.grants.kind == "operator"

    @cached_property
    def agents(self) -> Names:
        """The ids that it may act as."""
        return Names(None if self.is_operator else self.grants.agents)

    @cached_property
    def microdaos(self) -> Names:
        """The microDAOs that it may act in."""
        return Names(None if self.is_operator else self.grants.microdaos)

    @cached_property
    def models(self) -> Names:
        """The logical models that it may ask."""
        return Names(None if self.is_operator else self.grants.models)

    @cached_property
    def tools(self) -> Names:
        """The tools that it may call."""
        return Names(None if self.is_operator else self.grants.tools)

    @cached_property
    def limits(self) -> RateSettings | None:
        """The limits of its calls together; None where it has no limit of its own."""
        return self.grants.limits if any(self.grants.limits.amounts()) else None

    @cached_property
    def unrestricted(self) -> bool:
        """Whether it may name every agent, microDAO, model and tool."""
        return all(names.all for names in (self.agents, self.microdaos, self.models, self.tools))

    def narrowed(self, tenant: Tenant) -> Principal:
        """Returns it as it acts for one agent in one microDAO, and never as an operator.

        Raises:
            Forbidden: it may not act so.
        """
        if self.tenant == tenant:
            return self
        self.check(agent_id=tenant.agent_id, microdao_id=tenant.microdao_id)
        update = {"agents": [tenant.agent_id], "microdaos": [tenant.microdao_id]}
        if self.is_operator:
            update["kind"] = "service"  # type: ignore[assignment]
        return replace(self, grants=self.grants.model_copy(update=update), tenant=tenant)

    def claims(self) -> dict[str, Any]:
        """Returns what is written down of it, in delegations and in rows; Directory reads it.

        Of a stored principal only the name, because its grants may change.
        """
        claims: dict[str, Any] = {"sub": self.name}
        if self.issued:
            claims["grants"] = self.grants.model_dump(mode="json", exclude_unset=True)
        if self.credential != self.name:
            claims["credential"] = self.credential
        if self.tenant is not None:
            claims["tenant"] = self.tenant.model_dump()
        return claims

    def check_application(self, application: str) -> None:
        """Raises Forbidden unless it may use this application."""
        allowed = self.grants.applications
        if allowed is not None and application not in allowed and not self.is_operator:
            raise Forbidden(f"`{self.name}` may not use the application `{application}`: {SEE_ME}")

    def check(
        self,
        *,
        agent_id: str | None = None,
        microdao_id: str | None = None,
        model: str | None = None,
        tool_id: str | None = None,
    ) -> None:
        """Raises Forbidden that names the first of these that it may not act as, in, or use;
        InvalidRequest where that is no name at all.
        """
        if agent_id is not None and agent_id not in self.agents:
            raise self._refused("act as", agent_id=agent_id)
        if microdao_id is not None and microdao_id not in self.microdaos:
            raise self._refused("act in", microdao_id=microdao_id)
        if model is not None and model not in self.models:
            raise self._refused("use the model", model=model)
        if tool_id is not None and tool_id_of(tool_id) not in self.tools:
            raise self._refused("call the tool", tool_id=tool_id)

    def _refused(self, act: str, **claim: str) -> DaarionError:
        shown = {name: value[:_SHOWN_CHARS] for name, value in claim.items()}
        if not all(value and is_plain(value) for value in claim.values()):
            return InvalidRequest(f"{', '.join(claim)}: give 1 to 256 characters, no control ones")
        return Forbidden(
            f"`{self.name}` may not {act} `{', '.join(shown.values())}`: {SEE_ME}", details=shown
        )


ANYONE = Principal(ANONYMOUS, Grants(kind="operator"), ANONYMOUS)
"""Every caller while no secret is demanded."""
OPERATORS = Principal(OPERATOR, Grants(kind="operator"), OPERATOR)
"""Whoever presents the admin secret of the environment."""
OURSELVES = Principal(INTERNAL, Grants(agents=["*"], microdaos=["*"]), INTERNAL)
"""Whoever presents the internal secret, and this graph in work that nobody asked for."""
BUILT_IN = {principal.name: principal for principal in (ANYONE, OPERATORS, OURSELVES)}

_PRINCIPAL: ContextVar[Principal] = ContextVar("principal", default=OURSELVES)


def acting() -> Principal:
    """Returns the principal that the present task works for; without one, the graph itself."""
    return _PRINCIPAL.get()


def act_as(principal: Principal) -> None:
    """Sets the principal for the rest of this task, and for the tasks that it starts."""
    _PRINCIPAL.set(principal)


@contextmanager
def acting_as(principal: Principal) -> Iterator[None]:
    """Sets the principal within the block."""
    before = _PRINCIPAL.set(principal)
    try:
        yield
    finally:
        _PRINCIPAL.reset(before)
