"""Where the default model folders are. Imports nothing heavy: whoever needs the paths asks here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LLM_FOLDER = "smollm2-135m-instruct"
EMBEDDER_FOLDER = "multilingual-e5-small"


@dataclass(frozen=True, slots=True)
class ModelFolders:
    """The two default models, as paths that vLLM and sentence-transformers load directly."""

    llm: Path
    embedder: Path


def default_model_folders(data_dir: Path) -> ModelFolders:
    """Returns the default models' folders under the data directory, built or not."""
    models = models_dir(data_dir)
    return ModelFolders(llm=models / LLM_FOLDER, embedder=models / EMBEDDER_FOLDER)


def models_dir(data_dir: Path) -> Path:
    """Returns the parent of all model folders."""
    return data_dir / "models"
