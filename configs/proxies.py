"""Forward proxies: which one, if any, a call to another machine goes through."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated
from urllib.parse import quote, urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # typeshed leaves it out

from pydantic import AfterValidator, BaseModel, StringConstraints, model_validator

from common.loopback import is_loopback
from configs.endpoints import plain_url
from configs.own_secrets import OWN_SECRETS
from contracts.errors import ConfigurationError

_PROXY = re.compile(
    r"http://(?:[^\s/@:]+(?::[^\s/@]*)?@)?(?:[\w.-]+|\[[0-9a-fA-F:.]+\])(?::\d{1,5})?/?"
)


def _proxy_url(value: str) -> str:
    plain_url(value)
    if not _PROXY.fullmatch(value):
        raise ValueError("must be an http:// URL without a path")
    return value


class Proxied(BaseModel):
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
            raise ValueError(f"proxy_auth_env: {self.proxy_auth_env} opens this graph")
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
    name = f"{target.scheme}_proxy"
    found = _first(variables, name)
    if not found or is_loopback(target.hostname or ""):
        return None
    if proxy_bypass_environment(target.netloc, {"no": _first(variables, "no_proxy")}):
        return None
    proxy = found if "://" in found else f"http://{found}"
    if not _PROXY.fullmatch(proxy):
        raise ConfigurationError(f"{name.upper()} must be http://[user:password@]host[:port]")
    return proxy


def no_proxy(_url: str) -> None:
    """Connects directly, whatever the target."""


def _first(variables: Mapping[str, str], name: str) -> str:
    return (variables.get(name) or variables.get(name.upper()) or "").strip()
