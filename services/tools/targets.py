"""Checks of a tool's target that need no connection."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from contracts.errors import InvalidRequest
from contracts.tools.api import ToolDefinition

_PYTHON = re.compile(
    r"([A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*):([A-Za-z_][A-Za-z0-9_]*)"
)
_MCP = re.compile(r"([a-z0-9][a-z0-9-]*):(.{1,128})")


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
