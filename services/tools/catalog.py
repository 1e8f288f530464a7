"""The tools that an agent may call, in our form and as LLM tool definitions."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from contracts.access.principals import acting
from contracts.errors import NotFound
from contracts.shapes import Strict
from contracts.tools.api import plain_name
from contracts.tools.registry import RegisteredTool
from services.tools.policy import Policy
from services.tools.registry import Registry, Tool

REGISTRY_FIELDS = frozenset({"version", "enabled", "origin", "source", "outside", "updated_at"})
"""What `native_form` adds to a definition."""


class ListRequest(Strict):
    """Query of `GET /internal/tools`.

    Without `agent_id` every enabled tool is listed; `microdao_id` applies that tenant's rules.
    """

    agent_id: str | None = Field(default=None, min_length=1, max_length=256)
    microdao_id: str | None = Field(default=None, min_length=1, max_length=256)
    format: Literal["native", "openai"] = "native"


class Catalog:
    """Reads the registry under the same access rules as calls."""

    def __init__(self, registry: Registry, policy: Policy) -> None:
        self._registry = registry
        self._policy = policy

    def allowed(self, agent_id: str | None, microdao_id: str | None) -> list[Tool]:
        """Returns the enabled tools that caller and agent (without one: all) may call, by id.

        Raises Unavailable until the registry is loaded.
        """
        permitted = acting().tools
        tools = [tool for tool in self._registry.tools() if tool.definition.id in permitted]
        if agent_id is None:
            return tools
        return [
            tool
            for tool in tools
            if self._policy.access(tool.definition, agent_id, microdao_id).allowed
        ]

    def listing(self, wanted: ListRequest) -> dict[str, Any]:
        """Returns `{"tools": […]}` in the requested form."""
        tools = self.allowed(wanted.agent_id, wanted.microdao_id)
        return {
            "tools": [
                openai_form(tool) if wanted.format == "openai" else native_form(tool.registered)
                for tool in tools
            ]
        }

    async def one(self, tool_id: str) -> dict[str, Any]:
        """Returns one tool, enabled or not, with its version. Raises NotFound."""
        tool = await self._registry.find(tool_id)
        if tool is None or tool_id not in acting().tools:
            raise NotFound(f"there is no tool `{tool_id[:64]}`")
        return native_form(tool.registered)


def native_form(registered: RegisteredTool) -> dict[str, Any]:
    """Returns the definition with the registry's data about it."""
    return {
        **registered.definition.model_dump(mode="json"),
        "version": registered.version,
        "enabled": registered.enabled,
        "origin": registered.origin,
        "source": registered.source,
        "outside": registered.definition.outside,
        "updated_at": registered.updated_at.isoformat(),
    }


def openai_form(tool: Tool) -> dict[str, Any]:
    """Returns the tool in the form of chat completions, by its mapped name."""
    definition = tool.definition
    function = {
        "name": plain_name(definition.id),
        "description": description_of(tool),
        "parameters": definition.input_schema,
    }
    return {"type": "function", "function": function}


def description_of(tool: Tool) -> str:
    """Returns the description for models; an outside server's is marked with the server."""
    definition = tool.definition
    description = definition.description or definition.name
    if not definition.outside:
        return description
    return (
        f"Described by an outside server (`{definition.target.partition(':')[0]}`): {description}"
    )
