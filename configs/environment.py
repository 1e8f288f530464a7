"""The only reader of `os.environ`.

Every variable that the product knows is one field of `Environment`; provider keys are looked up
through `secret()`, by the names that the YAML gives.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from common.loopback import is_loopback
from configs.proxies import environment_proxy
from contracts.errors import ConfigurationError

REPOSITORY = Path(__file__).resolve().parent.parent
DEFAULT_PORT = 8000
METRICS_OFFSET = 90
MIN_PUBLIC_SECRET_CHARS = 16


@dataclass(frozen=True)
class Environment:
    """The process environment, read once.

    `data_dir` and `config_dir` are absolute. `allowed_hosts` are names, in lower case and without a
    port, that are accepted in `Host` beside those of loopback, and in `Origin`. `metrics_port` is
    where Prometheus finds the metrics of this node. Secrets are hidden from `repr`. `serve_proxy`
    is `haproxy` or `python`. `model`, a folder or a hub id, replaces the chat engine's configured
    one.
    """

    data_dir: Path
    config_dir: Path
    host: str
    port: int
    metrics_port: int
    allowed_hosts: frozenset[str]
    database_url: str | None = field(repr=False)
    nats_url: str | None = field(repr=False)
    internal_secret: str | None = field(repr=False)
    admin_secret: str | None = field(repr=False)
    model: str | None
    ray_temp_dir: Path | None
    ray_dashboard: bool
    serve_proxy: str
    _variables: Mapping[str, str] = field(repr=False)

    def secret(self, name: str) -> str | None:
        """Returns the value of the variable `name`, or None when it is unset or blank."""
        return self._variables.get(name, "").strip() or None

    def proxy_for(self, url: str) -> str | None:
        """Returns the forward proxy for `url` (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`), if any.

        Raises ConfigurationError for a variable that holds no http:// proxy.
        """
        return environment_proxy(self._variables, url)

    @property
    def variables(self) -> Mapping[str, str]:
        """Everything that was read, for whoever starts a child process."""
        return MappingProxyType(dict(self._variables))

    @property
    def ingress_url(self) -> str:
        """The ingress as this machine reaches it: a proxy runs beside every replica."""
        host = self.host if is_loopback(self.host) else "127.0.0.1"
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def any_secret(self) -> str | None:
        """The weakest secret that opens the graph; None where no credential is demanded."""
        return self.internal_secret or self.admin_secret

    @property
    def has_secret(self) -> bool:
        """Whether any credential is demanded from callers."""
        return bool(self.any_secret)


def read_environment(variables: Mapping[str, str] | None = None) -> Environment:
    """Reads and checks the environment (or `variables` in its place).

    Raises:
        ConfigurationError: a port or host name is malformed, or the address is public without a
            secret or with a short one.
    """
    source = dict(os.environ if variables is None else variables)

    def text(name: str) -> str | None:
        return source.get(name, "").strip() or None

    port = _port(text, "DAARION_PORT", DEFAULT_PORT)
    environment = Environment(
        data_dir=Path(text("DAARION_DATA_DIR") or REPOSITORY / ".data").expanduser().absolute(),
        config_dir=Path(text("DAARION_CONFIG_DIR") or REPOSITORY / "configs")
        .expanduser()
        .absolute(),
        host=text("DAARION_HOST") or "127.0.0.1",
        port=port,
        metrics_port=_port(text, "DAARION_METRICS_PORT", min(port + METRICS_OFFSET, 65_535)),
        allowed_hosts=_hosts(text("DAARION_ALLOWED_HOSTS") or ""),
        database_url=text("DATABASE_URL"),
        nats_url=text("NATS_URL"),
        internal_secret=text("DAARION_INTERNAL_SECRET"),
        admin_secret=text("DAARION_ADMIN_SECRET"),
        model=text("DAARION_MODEL"),
        ray_temp_dir=Path(folder).absolute() if (folder := text("DAARION_RAY_TEMP_DIR")) else None,
        ray_dashboard=(text("DAARION_RAY_DASHBOARD") or "").lower() in {"1", "true", "yes"},
        serve_proxy=_serve_proxy(text("DAARION_SERVE_PROXY")),
        _variables=source,
    )
    refuse_open_ingress(environment.host, environment, f"DAARION_HOST={environment.host}")
    return environment


def export(variables: Mapping[str, str]) -> None:
    """Adds variables to this process's environment, for libraries that read it at import."""
    os.environ.update(variables)


def refuse_open_ingress(host: str, environment: Environment, named: str) -> None:
    """Refuses an ingress that other machines reach without a secret, or with a guessable one.

    `named` tells the operator where `host` was given.

    Raises:
        ConfigurationError: `host` is not loopback, and no secret is set or one is too short.
    """
    if is_loopback(host):
        return
    if not environment.has_secret:
        raise ConfigurationError(
            f"{named} can be reached from other machines, but no secret is set in this process's "
            "environment: set DAARION_INTERNAL_SECRET (and DAARION_ADMIN_SECRET), or bind 127.0.0.1"
        )
    secrets = {
        "DAARION_INTERNAL_SECRET": environment.internal_secret,
        "DAARION_ADMIN_SECRET": environment.admin_secret,
    }
    for name, secret in secrets.items():
        if secret is not None and len(secret) < MIN_PUBLIC_SECRET_CHARS:
            raise ConfigurationError(
                f"{named} can be reached from other machines, but {name} has less than "
                f"{MIN_PUBLIC_SECRET_CHARS} characters: set one that `openssl rand -hex 32` makes, "
                "or bind 127.0.0.1"
            )


def _serve_proxy(value: str | None) -> str:
    proxy = (value or "haproxy").lower()
    if proxy in {"haproxy", "python"}:
        return proxy
    raise ConfigurationError(
        f"DAARION_SERVE_PROXY={value!r} is not an ingress: set haproxy or python"
    )


def _hosts(value: str) -> frozenset[str]:
    hosts = frozenset(host.strip().lower() for host in value.split(",") if host.strip())
    for host in hosts:
        if not re.fullmatch(r"[a-z0-9._-]+", host):
            raise ConfigurationError(
                f"DAARION_ALLOWED_HOSTS: {host!r} is not a host name: "
                "give names alone, without scheme and port"
            )
    return hosts


def _port(text: Callable[[str], str | None], name: str, default: int) -> int:
    value = text(name)
    if value is None:
        return default
    if value.isascii() and value.isdigit() and 0 < int(value) < 65536:
        return int(value)
    raise ConfigurationError(f"{name}={value!r} is not a port: give a number from 1 to 65535")
