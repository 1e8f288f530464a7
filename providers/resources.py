"""What every provider of one replica shares: the secrets, the in-cluster engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from contracts.ports import Engine


@dataclass(frozen=True)
class ProviderResources:
    """`secret` looks a key up by its variable's name; `engine` serves providers of type `local`."""

    secret: Callable[[str], str | None]
    engine: Engine
