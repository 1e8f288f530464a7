"""Resolves an administrator's definition: its bases, with checks of target and secrets."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from contracts.errors import InvalidRequest
from contracts.tools.api import ToolDefinition

_PYTHON = re.compile(
    r"([A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*):([A-Za-z_][A-Za-z0-9_]*)"
)
_MCP = re.compile(r"([a-z0-9][a-z0-9-]*):(.{1,128})")


@dataclass(frozen=True)
class DefinitionResolver:
    """Implements `Resolve` over the configuration.

    `put_bases` resolves bases, and raises ValueError for an unknown one; `secret_problem` returns
    why a resolved tool may not use its secrets.
    """

    put_bases: Callable[[ToolDefinition], ToolDefinition]
    secret_problem: Callable[[ToolDefinition], str | None]
    packages: Sequence[str]
    sources: Sequence[str]

    def __call__(self, definition: ToolDefinition) -> ToolDefinition:
        """Returns the resolved definition. Raises InvalidRequest."""
        try:
            resolved = self.put_bases(definition)
        except ValueError as error:
            raise InvalidRequest(str(error)) from None
        check_target(resolved, self.packages)
        if resolved.executor == "mcp" and resolved.target.split(":", 1)[0] not in self.sources:
            raise InvalidRequest("target: its source is not among the configured MCP sources")
        problem = self.secret_problem(resolved)
        if problem:
            raise InvalidRequest(f"secrets: {problem}")
        return resolved


def check_target(definition: ToolDefinition, packages: Sequence[str]) -> None:
    """Refuses a target that its executor could never serve.

    Raises:
        InvalidRequest: the target is no http(s) URL, holds credentials, is no function of a
            registered package, or is not of the form `source:tool`.
    """
    if definition.executor == "http":
        _check_url(definition.target)
    elif definition.executor == "python":
        _check_function(definition.target, packages)
    elif _MCP.fullmatch(definition.target) is None:
        raise InvalidRequest("target: an MCP tool's target is `source:tool`")


def _check_url(target: str) -> None:
    try:
        parts = urlsplit(target)
        host, _port = parts.hostname, parts.port
    except ValueError:
        raise InvalidRequest("target: not a URL") from None
    if parts.scheme not in {"http", "https"} or not host:
        raise InvalidRequest("target: must be an http:// or https:// URL")
    if parts.username is not None or parts.password is not None:
        raise InvalidRequest("target: must hold no credentials; give them through `secrets`")
    if not target.isascii() or any(character <= " " for character in target):
        raise InvalidRequest("target: must be ASCII without spaces; encode other characters")


def _check_function(target: str, packages: Sequence[str]) -> None:
    match = _PYTHON.fullmatch(target)
    if match is None:
        raise InvalidRequest("target: a Python tool's target is `module:function`")
    module, function = match.groups()
    if not any(module == package or module.startswith(f"{package}.") for package in packages):
        known = ", ".join(packages) or "there are none"
        raise InvalidRequest(f"target: the module is not in a registered package ({known})")
    if function.startswith("_"):
        raise InvalidRequest("target: the function must be public")
