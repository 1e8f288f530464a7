"""Resolves an administrator's definition: its bases, with checks of target and secrets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from contracts.errors import InvalidRequest
from contracts.tools.api import ToolDefinition
from services.tools.targets import check_target


class DefinitionResolver:
    """Implements `Resolve` over the configuration.

    `put_bases` resolves bases, and raises ValueError for an unknown one; `secret_problem` returns
    why a resolved tool may not use its secrets.
    """

    def __init__(
        self,
        put_bases: Callable[[ToolDefinition], ToolDefinition],
        secret_problem: Callable[[ToolDefinition], str | None],
        packages: Sequence[str],
        sources: Sequence[str],
    ) -> None:
        self._put_bases = put_bases
        self._secret_problem = secret_problem
        self._packages = packages
        self._sources = sources

    def __call__(self, definition: ToolDefinition) -> ToolDefinition:
        """Returns the resolved definition. Raises InvalidRequest."""
        try:
            resolved = self._put_bases(definition)
        except ValueError as error:
            raise InvalidRequest(str(error)) from None
        check_target(resolved, self._packages)
        if resolved.executor == "mcp" and resolved.target.split(":", 1)[0] not in self._sources:
            raise InvalidRequest("target: its source is not among the configured MCP sources")
        problem = self._secret_problem(resolved)
        if problem:
            raise InvalidRequest(f"secrets: {problem}")
        return resolved
