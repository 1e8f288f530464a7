"""Calls as the policy pipeline passes them to an executor."""

from typing import Any

from contracts.deadline import Deadline
from contracts.tools.api import Execution, ToolDefinition


def definition(target: str, executor: str = "http", **changes: Any) -> ToolDefinition:
    values: dict[str, Any] = {
        "id": "test.tool",
        "name": "Test",
        "input_schema": {"type": "object"},
        "effect": "read",
        "timeout_s": 5,
    }
    return ToolDefinition.model_validate(
        {**values, "executor": executor, "target": target, **changes}
    )


def execution(
    tool: ToolDefinition,
    args: dict[str, Any] | None = None,
    *,
    timeout_s: float | None = None,
    call_id: str = "c-1",
) -> Execution:
    context = {"agent_id": "agent:sofia", "microdao_id": "microdao:7", "call_id": call_id}
    return Execution(
        tool,
        args or {},
        context,
        call_id,
        Deadline.after(timeout_s or tool.timeout_s),
        f"microdao:7/{call_id}",
    )


class Secrets:
    """Implements the SecretSource port."""

    def __init__(self, **values: str) -> None:
        self._values = values

    def value(self, name: str, tool_id: str, url: str | None) -> str | None:
        return self._values.get(name)
