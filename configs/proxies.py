"""Forward proxies: which one, if any, a call to another machine goes through."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from ipaddress import ip_address, ip_network
from typing import Annotated
from urllib.parse import SplitResult, quote, urlsplit
from urllib.request import (  # type: ignore[attr-defined]  # typeshed leaves it out
    proxy_bypass_environment,
)

from pydantic import AfterValidator, StringConstraints, model_validator

from common.loopback import is_loopback
from configs.endpoints import OWN_SECRETS, plain_url
from contracts.errors import ConfigurationError
from contracts.shapes import Strict

_PROXY = re.compile(
    r"http://(?:[^\s/@:]+(?::[^\s/@]*)?@)?(?:[\w.-]+|\[[0-9a-fA-F:.]+\])(?::\d{1,5})?/?"
)


def _is_proxy(value: str) -> bool:
    """Whether `value` is the URL of an http:// proxy, perhaps with credentials."""
    with suppress(ValueError):  # a port over 65535
        return bool(_PROXY.fullmatch(value)) and urlsplit(value).port != 0
    return False


def _proxy_url(value: str) -> str:
    plain_url(value)
    if not _is_proxy(value):
        raise ValueError("must be an http:// URL without a path")
    return value


class Proxied(Strict):
    """The forward proxy of one endpoint.

    `proxy` is its `http://host:port`, `proxy_auth_env` the variable that holds `user:password`.
    Without `proxy` the environment's `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` apply.
    """

    proxy: Annotated[str, AfterValidator(_proxy_url)] | None = None
    proxy_auth_env: (
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None
    ) = None

    @model_validator(mode="after")
    def _auth_has_proxy(self) -> Proxied:
        if self.proxy_auth_env is not None and self.proxy is None:
            raise ValueError("proxy_auth_env: needs `proxy` beside it")
        if self.proxy_auth_env in OWN_SECRETS:
            raise ValueError(f"proxy_auth_env: {self.proxy_auth_env} holds a secret of this graph")
        return self

    def proxy_for(
        self,
        url: str,
        secret: Callable[[str], str | None],
        from_environment: Callable[[str], str | None],
    ) -> str | None:
        """Returns the proxy's URL for calls to `url`, with credentials; None for a direct call.

        `secret` reads a variable; `from_environment` is `Environment.proxy_for`.

        Raises:
            ConfigurationError: the credentials are not set, or the environment's proxy is wrong.
        """
        if self.proxy is None:
            return from_environment(url)
        if self.proxy_auth_env is None:
            return self.proxy
        user, colon, password = (secret(self.proxy_auth_env) or "").partition(":")
        if not user or not colon:
            raise ConfigurationError(f"{self.proxy_auth_env} is not set to user:password")
        credentials = f"{quote(user, safe='')}:{quote(password, safe='')}"
        return self.proxy.replace("http://", f"http://{credentials}@", 1)


def environment_proxy(variables: Mapping[str, str], url: str) -> str | None:
    """Returns the proxy for `url` by `HTTPS_PROXY` (https:// targets), `HTTP_PROXY` and `NO_PROXY`.

    Lower-case names win. Loopback is never proxied.

    Raises:
        ConfigurationError: a value is no http:// proxy. It is not shown: it may hold a password.
    """
    target = urlsplit(url)
    name, found = _first(variables, f"{target.scheme}_proxy")
    if not found or is_loopback(target.hostname or ""):
        return None
    if _is_exempt(target, _first(variables, "no_proxy")[1]):
        return None
    proxy = found if "://" in found else f"http://{found}"
    if not _is_proxy(proxy):
        raise ConfigurationError(
            f"{name} must be http://[user:password@]host[:port], other schemes are not supported: "
            "set an http:// proxy, give this endpoint its own by `proxy:`, or exempt its host by "
            "NO_PROXY"
        )
    return proxy


def _is_exempt(target: SplitResult, no_proxy: str) -> bool:
    """Whether `NO_PROXY` names the target: by host, domain, `host:port`, address or network."""
    with suppress(ValueError):  # the target is a name
        address = ip_address(target.hostname or "")
        for entry in no_proxy.split(","):
            with suppress(ValueError):  # the entry is a name
                if address in ip_network(entry.strip().strip("[]"), strict=False):
                    return True
    return bool(proxy_bypass_environment(target.netloc, {"no": no_proxy}))


def no_proxy(_url: str) -> None:
    """Connects directly, whatever the target."""


def _first(variables: Mapping[str, str], name: str) -> tuple[str, str]:
    """Returns the variable that is set, in lower case or else in upper case, and its value."""
    given = name if variables.get(name) else name.upper()
    return given, variables.get(given, "").strip()
