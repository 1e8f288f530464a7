"""The policy pipeline as pure functions: the same steps in the same order for every way in.

1. the tool exists and is enabled            not_found     404
2. the agent is among `allowed_agents`       denied        403
3. the tenant's rules, then the default      denied        403
4. no foreign tenant in the arguments        denied        403
5. arguments are bounded, and match          invalid_args  422
6. the outside policy service, if any        denied        403 (in `calls`)
7. approval, if the tool needs it            denied        403 (in `calls`, by the ledger)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from contracts.identity import matches
from contracts.tools.api import Decision, ToolCallRequest, ToolDefinition
from contracts.tools.policy import CallBounds, PolicyRules
from services.tools.registry import Tool
from services.tools.values import size_problem

TENANT_KEY = "microdao_id"
UNWRITABLE = Decision(
    allowed=False,
    rule="input_schema",
    error_kind="invalid_args",
    reason="args: expected JSON of UTF-8 texts and 64-bit numbers",
    path="$",
)


@dataclass(frozen=True)
class Policy:
    """The operator's rules and bounds."""

    rules: PolicyRules
    bounds: CallBounds

    def decide(self, tool: Tool | None, request: ToolCallRequest) -> Decision:
        """Returns whether this call may run, the rule, and what a refused caller should change."""
        if tool is None or not tool.enabled:
            return _refused(
                "not_found",
                "tool",
                f"there is no enabled tool `{request.tool_id[:64]}`: list them with "
                "GET /internal/tools",
            )
        decision = self.access(tool.definition, request.agent_id, request.microdao_id)
        if not decision.allowed:
            return decision
        return self._arguments(tool, request) or decision

    def access(self, tool: ToolDefinition, agent_id: str, microdao_id: str | None) -> Decision:
        """Returns whether the agent may call the tool at all; tenant rules need a tenant."""
        named = agent_rule(tool, agent_id)
        if named is not None and not named.allowed:
            return named
        by_tenant = None if microdao_id is None else tenant_rule(self.rules, tool.id, microdao_id)
        if by_tenant is not None and not by_tenant.allowed:
            return by_tenant
        allowed = named or by_tenant
        if allowed is None and self.rules.default == "deny":
            return _refused(
                "denied",
                "default",
                f"`{tool.id}` names no agents and no rule allows it here; the default is deny",
            )
        return allowed or Decision(allowed=True, rule="default")

    def needs_approval(self, tool: ToolDefinition) -> bool:
        """Whether a person must agree before a call runs."""
        if tool.requires_approval is not None:
            return tool.requires_approval
        return tool.effect in self.rules.require_approval_for

    def _arguments(self, tool: Tool, request: ToolCallRequest) -> Decision | None:
        args = request.args
        if not isinstance(args, dict):
            return _invalid("$", "an object of named arguments")
        if args.get(TENANT_KEY, request.microdao_id) != request.microdao_id:
            return _refused(
                "denied", "args.microdao_id", "args.microdao_id is not the caller's microDAO"
            )
        problem = self._size_problem(args, self.bounds.max_args_bytes)
        if problem:
            return _invalid("$", f"arguments within bounds: these are {problem}")
        problem = self._size_problem(request.context or {}, self.bounds.max_context_bytes)
        if problem:
            return _invalid("context", f"a context within bounds: this one is {problem}")
        violation = tool.input.violation(args)
        return _invalid(violation.path, violation.expected) if violation else None

    def _size_problem(self, value: Any, max_bytes: int) -> str | None:
        return size_problem(
            value,
            max_depth=self.bounds.max_depth,
            max_values=self.bounds.max_values,
            max_bytes=max_bytes,
        )


def agent_rule(tool: ToolDefinition, agent_id: str) -> Decision | None:
    """Returns the definition's decision about the agent; None if it names no agents."""
    if tool.allowed_agents is None:
        return None
    for pattern in tool.allowed_agents:
        if matches(pattern, agent_id):
            return Decision(allowed=True, rule=f"allowed_agents:{pattern}")
    return _refused(
        "denied", "allowed_agents", f"agent `{agent_id[:64]}` is not allowed to call `{tool.id}`"
    )


def tenant_rule(rules: PolicyRules, tool_id: str, microdao_id: str) -> Decision | None:
    """Returns the decision of the tenant's rule about the tool, or None."""
    found = rules.of_tenant(microdao_id)
    if found is None:
        return None
    pattern, rule = found
    if any(matches(denied, tool_id) for denied in rule.deny):
        return _refused(
            "denied", f"tenants.{pattern}.deny", f"`{tool_id}` is closed to this microDAO"
        )
    if rule.allow is None:
        return None
    if any(matches(allowed, tool_id) for allowed in rule.allow):
        return Decision(allowed=True, rule=f"tenants.{pattern}.allow")
    return _refused(
        "denied", f"tenants.{pattern}.allow", f"`{tool_id}` is not among the tools of this microDAO"
    )


def _refused(kind: Any, rule: str, reason: str) -> Decision:
    return Decision(allowed=False, rule=rule, error_kind=kind, reason=reason)


def _invalid(path: str, expected: str) -> Decision:
    where = "args" + path.removeprefix("$") if path.startswith("$") else path
    reason = f"{where}: expected {expected}"
    return Decision(
        allowed=False,
        rule="input_schema",
        error_kind="invalid_args",
        reason=reason,
        path=path,
        expected=expected,
    )
