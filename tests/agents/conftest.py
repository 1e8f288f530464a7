"""Fixtures of the agents' tests; modules that need another platform have their own `here`."""

from tests.support.agents.tool_scenes import here, shared

__all__ = ["here", "shared"]
