"""Vectors of the gold sets by the product's encoder, cached below the data directory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.engines.embedder import LocalEmbedderSettings, embedder_source
from configs.environment import Environment
from contracts.llm.embeddings import EmbeddingKind

STEP = 256


class EmbeddingCache:
    """Vectors by a hash of model version, prefix and text. Loads the model for new texts only."""

    def __init__(self, settings: LocalEmbedderSettings, environment: Environment) -> None:
        self._settings = settings
        self._environment = environment
        self._path = (
            environment.data_dir / "cache" / "benchmarks" / f"{_file_name(settings.version)}.npz"
        )
        self._known = _read(self._path)

    def vectors(self, texts: Sequence[str], kind: EmbeddingKind) -> NDArray[np.float32]:
        """Returns one row per text."""
        keys = [self._key(text, kind) for text in texts]
        missing = {
            key: text for key, text in zip(keys, texts, strict=True) if key not in self._known
        }
        if missing:
            self._embed(missing, kind)
        return np.stack([self._known[key] for key in keys])

    def _embed(self, missing: dict[str, str], kind: EmbeddingKind) -> None:
        from deployments.engines.sentence_encoder import SentenceEncoder  # noqa: PLC0415  # torch

        encoder = SentenceEncoder(
            self._settings, embedder_source(self._settings, self._environment)
        )
        entries = list(missing.items())
        for start in range(0, len(entries), STEP):
            part = entries[start : start + STEP]
            answers = encoder.encode([text for _, text in part], kind)
            self._known |= {
                key: np.frombuffer(data, "<f4")
                for (key, _), (data, _) in zip(part, answers, strict=True)
            }
            self._save()
            print(f"embedded {start + len(part)} of {len(entries)} new texts", flush=True)

    def _save(self) -> None:
        """Called after every step, so that the next run continues an interrupted one."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        written = self._path.with_suffix(".new")
        with written.open("wb") as file:
            np.savez(
                file, keys=np.array(list(self._known)), rows=np.stack(list(self._known.values()))
            )
        written.replace(self._path)

    def _key(self, text: str, kind: EmbeddingKind) -> str:
        content = "\0".join((self._settings.version, self._settings.prefixes.of(kind), text))
        return hashlib.sha256(content.encode()).hexdigest()


def _read(path: Path) -> dict[str, NDArray[np.float32]]:
    if not path.is_file():
        return {}
    with np.load(path) as stored:
        return dict(zip(stored["keys"].tolist(), stored["rows"], strict=True))


def _file_name(version: str) -> str:
    return "".join(
        character if character.isalnum() or character in "._-" else "-" for character in version
    )
