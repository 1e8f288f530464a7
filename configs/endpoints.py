"""Addresses and headers of other services, and what keeps this graph's own secrets from them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator

from common.loopback import is_loopback

OWN_SECRETS = ("DAARION_INTERNAL_SECRET", "DAARION_ADMIN_SECRET")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def plain_url(value: str) -> str:
    """Returns `value`. Raises ValueError unless it is an HTTP address without further parts."""
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0:
        raise ValueError("must be an http:// or https:// URL")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "must hold no credentials, query or fragment; keys are read from the environment"
        )
    return value


def _checked_headers(value: dict[str, str]) -> dict[str, str]:
    """Returns `value`. Raises ValueError for credentials and for headers that are set anyway."""
    for name, text in value.items():
        if name.lower() in {
            "authorization",
            "proxy-authorization",
            "cookie",
            "x-api-key",
            "api-key",
        }:
            raise ValueError(f"`{name}` would be a secret in a file; give it through `api_key_env`")
        if not _HEADER_NAME.fullmatch(name) or not text.isprintable():
            raise ValueError(f"`{name}` must be a header's name with a value of one line")
        if name.lower() in {
            "host",
            "content-length",
            "transfer-encoding",
            "connection",
            "accept-encoding",
        }:
            raise ValueError(f"`{name}` is set by the proxy itself")
    return value


Url = Annotated[str, AfterValidator(plain_url)]
BaseUrl = Annotated[Url, AfterValidator(lambda value: value.rstrip("/"))]
"""Without a slash at its end, because paths are appended."""
Headers = Annotated[dict[str, str], AfterValidator(_checked_headers)]


def refuse_exposed_key(base_url: str | None, api_key_env: str | None, *, insecure: bool) -> None:
    """Checks that a key stays secret.

    Raises:
        ValueError: it is a secret of this graph, or would leave this machine over plain http://.
    """
    if api_key_env in OWN_SECRETS:
        raise ValueError(
            f"api_key_env: {api_key_env} holds a secret of this graph: "
            "give the endpoint a key of its own"
        )
    if base_url is None or api_key_env is None or insecure:
        return
    parts = urlsplit(base_url)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise ValueError(
            f"base_url: the key in {api_key_env} would go over plain http:// to another machine: "
            "use https://, or accept that with `insecure: true` in this entry"
        )


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
