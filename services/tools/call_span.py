"""The span of a tool call, after OpenTelemetry's conventions for generative AI."""

from __future__ import annotations

from common import tracing
from contracts.tools.api import Decision, ToolCallRequest
from services.tools.registry import Tool


def span_attributes(request: ToolCallRequest) -> dict[str, str]:
    """Returns the attributes that a call has before its tool is known."""
    return {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.call.id": request.call_id or "",
        "gen_ai.agent.id": request.agent_id,
        "daarion.microdao_id": request.microdao_id,
    }


def show_decision(tool: Tool | None, decision: Decision) -> None:
    """Names the tool in the current span, if there is one of that name, and the policy's rule."""
    span = tracing.get_current_span()
    if not span.is_recording():
        return
    span.set_attribute("daarion.tool.rule", decision.rule)
    span.set_attribute("daarion.tool.allowed", decision.allowed)
    if tool is not None:
        span.set_attribute("gen_ai.tool.name", tool.definition.id)
        span.update_name(f"execute_tool {tool.definition.id}")
