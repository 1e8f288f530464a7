"""Where the stores are: from the environment, else as `make services` or `make run` recorded."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from configs.environment import Environment
from contracts.errors import ConfigurationError

# libpq refuses these servers itself, so there is no SQLSTATE, only its text.
_REFUSED_SERVERS = {
    "authentication method requirement": (
        "the server of DATABASE_URL does not use SCRAM for this login: set scram-sha-256 in its "
        "pg_hba.conf, or, if you trust whoever listens there, name its method in the URL "
        "(`?require_auth=md5`, `password`, `none` …)"
    ),
    "certificate verify failed": (
        "no authority in sslrootcert of DATABASE_URL has signed the server's certificate, or it "
        "has expired: name the file of the authority that signed it"
    ),
    "does not match host name": (
        "the certificate of DATABASE_URL's server is for another host: "
        "name the server in the URL as its certificate does"
    ),
    "server does not support SSL": (
        "the server of DATABASE_URL offers no TLS, which sslmode in the URL demands: "
        "set `ssl = on` and a certificate there"
    ),
    "root certificate file": (
        "sslrootcert of DATABASE_URL is no readable file of certificates, which sslmode needs: "
        "name the file of the authority that signed the server's certificate"
    ),
}
SERVICES_FILE = Path("run") / "services.json"


@dataclass(frozen=True)
class Stores:
    """URLs of the stores; they hold passwords and are hidden from `repr`."""

    database_url: str = field(repr=False)
    nats_url: str | None = field(repr=False)


def login_parameters(url: str) -> dict[str, Any]:
    """Returns libpq's parameters of a PostgreSQL URL, or of its own form.

    A password, from the URL or from another source of libpq, goes only to a server that asks for it
    by SCRAM, which does not reveal it. Without one in the URL the server may also ask for none
    (`peer`, `trust`, certificates). `require_auth` in the URL, or a verified certificate of the
    server, replaces this rule.

    Raises:
        ConfigurationError: it is no PostgreSQL URL. The message does not show it, because it may
            hold a password.
    """
    given: dict[str, Any] = {}
    with suppress(psycopg.Error):
        given = conninfo_to_dict(url)
    if not given:
        raise ConfigurationError(
            "DATABASE_URL is not a PostgreSQL URL: "
            "use postgresql://user:password@host:port/database"
        )
    if given.get("sslmode") not in {"verify-ca", "verify-full"}:
        given.setdefault(
            "require_auth", "scram-sha-256" if given.get("password") else "scram-sha-256,none"
        )
    return given


def why_refused(error: Exception) -> str | None:
    """Returns why this side refused the server, and what to change; None for another failure."""
    return next((why for part, why in _REFUSED_SERVERS.items() if part in str(error)), None)


def find_stores(environment: Environment) -> Stores:
    """Returns the stores' URLs.

    Raises:
        ConfigurationError: no PostgreSQL is known; the message names both remedies.
    """
    recorded = _recorded(environment.data_dir / SERVICES_FILE)
    database_url = environment.database_url or recorded.get("database_url")
    if not database_url:
        raise ConfigurationError(
            "no PostgreSQL is known: set DATABASE_URL, or run `make services` beside this graph"
        )
    return Stores(database_url, environment.nats_url or recorded.get("nats_url"))


def _recorded(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return (
        {key: value for key, value in content.items() if isinstance(value, str)}
        if isinstance(content, dict)
        else {}
    )
