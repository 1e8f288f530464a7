"""DAARION's usage engine: its models of `usage.*`, which drop what does not validate."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class _Event(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    event_id: str
    timestamp: datetime


class _ActorEvent(_Event):
    actor_id: str
    actor_type: Literal["human", "agent", "service"]
    agent_id: str | None = None
    microdao_id: str | None = None
    success: bool
    latency_ms: int
    error: str | None = None
    metadata: dict[str, Any] | None = None


class LlmUsage(_ActorEvent):
    """`usage.llm`."""

    model: str
    provider: str
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ToolUsage(_ActorEvent):
    """`usage.tool`."""

    tool_id: str
    tool_name: str


class AgentUsage(_Event):
    """`usage.agent`."""

    agent_id: str
    microdao_id: str | None = None
    channel_id: str | None = None
    trigger: Literal["message", "scheduled", "manual"]
    duration_ms: int
    llm_calls: int
    tool_calls: int
    success: bool
    error: str | None = None
    metadata: dict[str, Any] | None = None
