"""Whether this commit may be tagged as a release: `make release-check`. Lists what is missing.

The version of pyproject.toml is the one that the changelog's top entry dates, its tag is free,
every migration is pinned by a test, and nothing is left uncommitted.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ENTRY = re.compile(r"^## (\S+) — (.+)$", re.MULTILINE)
DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
PINS = Path("tests/stores/test_released_migrations.py")
MIGRATIONS = Path("backends/postgres/migrations")


def missing(root: Path) -> list[str]:
    """Returns what keeps the commit in `root` from being a release, each with what to do."""
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    entry = ENTRY.search((root / "CHANGELOG.md").read_text())
    listed, date = entry.groups() if entry else ("nothing", "")
    pins = (root / PINS).read_text()
    unpinned = [
        file.stem
        for file in sorted((root / MIGRATIONS).glob("*.sql"))
        if f'"{file.stem}": ' not in pins
    ]
    checks = {
        "commit or remove what `git status` lists": git(root, "status", "--porcelain") == "",
        f"pyproject.toml says {version}, the changelog's top entry {listed}": version == listed,
        f"date the changelog's entry: `## {version} — 2026-03-14`": DATE.fullmatch(date),
        f"v{version} is tagged already: raise the version": not git(
            root, "tag", "--list", f"v{version}"
        ),
        f"pin {', '.join(unpinned)} in {PINS}": not unpinned,
    }
    return [what for what, passed in checks.items() if not passed]


def git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", root, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    found = missing(Path.cwd())
    sys.stdout.write("".join(f"not yet a release: {what}\n" for what in found))
    sys.exit(bool(found))
