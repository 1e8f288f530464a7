"""Where the stores are: the environment, else what `make services` (or `make run`) recorded under the data directory."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from configs.environment import Environment
from contracts.errors import ConfigurationError

SERVICES_FILE = Path("run") / "services.json"


@dataclass(frozen=True)
class Stores:
    """URLs of the stores; they hold passwords and are hidden from `repr`."""

    database_url: str = field(repr=False)
    nats_url: str | None = field(repr=False)


def find_stores(environment: Environment) -> Stores:
    """Returns the stores' URLs.

    Raises:
        ConfigurationError: no PostgreSQL is known; the message names both remedies.
    """
    recorded = _recorded(environment.data_dir / SERVICES_FILE)
    database_url = environment.database_url or recorded.get("database_url")
    if not database_url:
        raise ConfigurationError("no PostgreSQL is known: set DATABASE_URL, or run `make services` beside this graph")
    return Stores(database_url, environment.nats_url or recorded.get("nats_url"))


def _recorded(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {key: value for key, value in content.items() if isinstance(value, str)} if isinstance(content, dict) else {}
