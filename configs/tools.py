"""The typed model of `tools.yaml`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import (
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from configs.endpoints import OWN_SECRETS, Url, plain_url, same_origin, would_leave
from contracts.identity import Pattern, matches
from contracts.shapes import Strict
from contracts.tools.api import (
    Effect,
    EgressRule,
    IsolationTier,
    SecretUse,
    SecretWithheld,
    ToolDefinition,
)
from contracts.tools.policy import CallBounds, PolicyRules, host_matches

_BASE = re.compile(r"\{([a-z][a-z0-9_]*)\}")
INGRESS = "ingress"

Name = Annotated[
    str, StringConstraints(min_length=1, max_length=32, pattern=r"^[a-z0-9][a-z0-9-]*$")
]
Seconds = Annotated[float, Field(gt=0, le=86_400 * 365, allow_inf_nan=False)]
HostPattern = Annotated[
    str,
    StringConstraints(
        to_lower=True, max_length=253, pattern=r"^(\*\.)?[A-Za-z0-9._:\[\]-]*[A-Za-z0-9\]]$"
    ),
]
EnvironmentName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class SecretSettings(Strict):
    """A secret: the environment variable of its value, the tools that may use it, its destinations.

    `hosts` are names or addresses, `*.example.com` for subdomains, or `ingress` for this graph
    itself; Python tools need none. A secret is sent over https only (or to the ingress) unless
    `insecure` is true. `<source>.*` names a source's tools.
    """

    env: EnvironmentName
    tools: Annotated[list[Pattern], Field(min_length=1)]
    hosts: list[HostPattern] = Field(default=[], max_length=64)
    insecure: bool = False

    @model_validator(mode="after")
    def _own_secrets_stay(self) -> SecretSettings:
        if self.env in OWN_SECRETS and set(self.hosts) - {INGRESS}:
            raise ValueError(
                f"hosts: {self.env} is a secret of this graph and is sent only to `{INGRESS}`; "
                "give other services secrets of their own"
            )
        return self

    def problem(self, tool_id: str, url: str | None, ingress: str) -> str | None:
        """Returns why the tool may not use this secret or send it to `url`, or None.

        `url` is None for a child process.
        """
        if not any(matches(pattern, tool_id) for pattern in self.tools):
            return "is not for this tool"
        own = self.env in OWN_SECRETS
        if url is not None and (own or INGRESS in self.hosts) and same_origin(url, ingress):
            return None
        if own:
            return (
                "is a secret of this graph and is sent only to its own ingress: "
                "give the service a secret of its own"
            )
        if url is None:
            return None
        parts = urlsplit(url)
        if not any(
            host_matches(pattern, (parts.hostname or "").rstrip(".")) for pattern in self.hosts
        ):
            return "is not for the target's host: name it in the secret's `hosts`"
        if parts.scheme != "https" and not self.insecure:
            return (
                "is sent only over https: give an https target, or `insecure: true` to the secret"
            )
        return None


class SourceSettings(Strict):
    """An outside MCP server whose tools join the registry as `<source>.<tool>`.

    Its answers are data: the effects of its tools are declared here, by `effect` (all tools) and
    `effects` (by the server's own tool name), not taken from its annotations. `tools` selects the
    tools by pattern. The other fields are as for a tool.
    """

    url: Url
    tools: list[Pattern] = Field(default=["*"])
    effect: Effect = "write"
    effects: dict[str, Effect] = Field(default={})
    allowed_agents: list[str] | None = None
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 30.0
    refresh_s: Annotated[float, Field(ge=1, le=86_400)] = 300.0
    max_tools: Annotated[int, Field(ge=1, le=1_000)] = 200
    secrets: list[SecretUse] = Field(default=[])
    egress: list[EgressRule] = Field(default=[])


class LedgerSettings(Strict):
    """How long results are kept for replays and reading, calls for the audit, and versions of tools
    that newer ones replaced; null keeps these.
    """

    keep_results_s: Seconds = 86_400.0
    keep_calls_days: Annotated[int, Field(ge=1, le=3_650)] = 90
    keep_versions_days: Annotated[int, Field(ge=1, le=36_500)] | None = None


class NatsSettings(Strict):
    """Calls over NATS: `max_in_flight` run per replica, `max_waiting` wait in the stream, and a
    message is given up after `max_deliveries`. Those given up are kept for `keep_parked_days`.
    """

    enabled: bool = True
    max_in_flight: Annotated[int, Field(ge=1, le=1_000)] = 16
    max_waiting: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    max_deliveries: Annotated[int, Field(ge=1, le=100)] = 5
    keep_parked_days: Annotated[float, Field(ge=0.01, le=365)] = 14.0


class ToolsSettings(Strict):
    """`tools.yaml`.

    `bases` are prefixes of targets, which name them `{base}`; a base that begins with `ingress` is
    at this graph's own address. `egress` is the ceiling for all HTTP and MCP tools, which no tool's
    own rules widen. `isolation_floor` is the weakest tier that any Python tool runs in; a host
    without it or a stronger one refuses Python tools.
    """

    tools: list[ToolDefinition]
    bases: dict[str, str] = Field(default={})
    policy: PolicyRules = PolicyRules()
    bounds: CallBounds = CallBounds()
    secrets: dict[str, SecretSettings] = Field(default={})
    sources: dict[Name, SourceSettings] = Field(default={})
    egress: list[EgressRule] = Field(default=[])
    python_packages: list[
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*$")]
    ] = Field(default=["toolbox"])
    isolation_floor: IsolationTier = "landlock"
    ledger: LedgerSettings = LedgerSettings()
    nats: NatsSettings = NatsSettings()
    refresh_s: Annotated[float, Field(ge=0.1, le=60)] = 1.0

    @field_validator("bases")
    @classmethod
    def _plain_bases(cls, value: dict[str, str]) -> dict[str, str]:
        return {
            name: (base if _on_ingress(base) else plain_url(base)).rstrip("/")
            for name, base in value.items()
        }

    @model_validator(mode="after")
    def _references(self) -> ToolsSettings:
        seen: set[str] = set()
        for tool in self.tools:
            if tool.id in seen:
                raise ValueError(f"tools: `{tool.id}` is defined twice")
            seen.add(tool.id)
            for base in _BASE.findall(tool.target):
                if base not in self.bases:
                    known = ", ".join(self.bases) or "there are none"
                    raise ValueError(
                        f"tools.{tool.id}.target: `{base}` is not among bases: {known}"
                    )
            unknown = [use.name for use in tool.secrets if use.name not in self.secrets]
            if unknown:
                raise ValueError(
                    f"tools.{tool.id}.secrets: `{unknown[0]}` is not among the configured secrets"
                )
        return self

    def ceiling(self, ingress: str) -> tuple[EgressRule, ...]:
        """Returns the egress rules that bound all tools, our own ingress included, or none."""
        return (*self.egress, ingress_rule(ingress)) if self.egress else ()

    def secret_problem(self, definition: ToolDefinition, ingress: str) -> str | None:
        """Returns why the tool, its bases resolved, may not use its secrets, or None."""
        if definition.executor == "mcp":
            return "an MCP tool's secrets are those of its source" if definition.secrets else None
        url = definition.target if definition.executor == "http" else None
        return self._problem(definition.id, definition.secrets, url, ingress)

    def source_problem(self, name: str, ingress: str) -> str | None:
        """Returns why a source may not use its secrets, or None."""
        source = self.sources[name]
        return self._problem(f"{name}.*", source.secrets, source.url, ingress)

    def _problem(
        self, tool_id: str, uses: list[SecretUse], url: str | None, ingress: str
    ) -> str | None:
        for use in uses:
            known = self.secrets.get(use.name)
            problem = (
                "is not among the configured secrets"
                if known is None
                else known.problem(tool_id, url, ingress)
            )
            if problem:
                return f"`{use.name}` {problem}"
        return None

    def resolve(self, definition: ToolDefinition, ingress: str) -> ToolDefinition:
        """Returns the definition with its bases resolved.

        A target on our own ingress may connect to that port alone.

        Raises:
            ValueError: the target names a base that is not configured.
        """
        used = _BASE.findall(definition.target)
        missing = [base for base in used if base not in self.bases]
        if missing:
            raise ValueError(f"target: `{missing[0]}` is not among the configured bases")
        egress = list(definition.egress)
        if any(_on_ingress(self.bases[base]) for base in used):
            egress.append(ingress_rule(ingress))
        return definition.model_copy(
            update={
                "target": _BASE.sub(lambda found: self._base(found[1], ingress), definition.target),
                "egress": egress,
            }
        )

    def _base(self, name: str, ingress: str) -> str:
        base = self.bases[name]
        return ingress + base.removeprefix(INGRESS) if _on_ingress(base) else base


def _on_ingress(base: str) -> bool:
    return base == INGRESS or base.startswith(f"{INGRESS}/")


class ConfiguredSecrets:
    """Implements SecretSource: values from the environment, names from the configuration."""

    def __init__(
        self, secrets: Mapping[str, SecretSettings], read: Callable[[str], str | None], ingress: str
    ) -> None:
        self._secrets = secrets
        self._read = read
        self._ingress = ingress

    def value(self, name: str, tool_id: str, url: str | None) -> str | None:
        """Returns the secret's value, or None if it is not configured.

        Raises:
            SecretWithheld: not for this tool or destination, or this graph's own by another name.
        """
        known = self._secrets.get(name)
        value = None if known is None else self._read(known.env)
        if known is None or value is None:
            return None
        problem = known.problem(tool_id, url, self._ingress)
        if problem is None and would_leave(value, url, self._ingress, self._read):
            problem = (
                "has the value of this graph's own secret, which is sent only to its own ingress"
            )
        if problem:
            raise SecretWithheld(f"the secret `{name}` {problem}")
        return value


def ingress_rule(ingress: str) -> EgressRule:
    """Returns the rule for tools that are this graph's own applications."""
    parts = urlsplit(ingress)
    host = parts.hostname or "127.0.0.1"
    return EgressRule(host=host, port=parts.port, cidr=f"{host}/{128 if ':' in host else 32}")
