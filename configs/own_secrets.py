"""Keeps this graph's own secrets from being sent elsewhere than to its ingress."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from common.loopback import is_loopback

OWN_SECRETS = ("DAARION_INTERNAL_SECRET", "DAARION_ADMIN_SECRET")


def would_leave(
    value: str, url: str | None, ingress: str, lookup: Callable[[str], str | None]
) -> bool:
    """Whether `value` is a secret of this graph and `url` is not its ingress.

    `lookup` reads a variable of the environment.
    """
    return opens_graph(value, lookup) and not (url is not None and same_origin(url, ingress))


def opens_graph(value: str, lookup: Callable[[str], str | None]) -> bool:
    """Whether `value` is a secret of this graph, whichever variable it was read from."""
    return value in map(lookup, OWN_SECRETS)


def same_origin(url: str, other: str) -> bool:
    """Whether two URLs share scheme, host and port; all loopback names count as one host."""
    return _origin(url) == _origin(other)


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, "localhost" if is_loopback(host) else host, port
