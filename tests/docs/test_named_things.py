"""Files, make targets, modules and routes that documents name exist."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

from interfaces.http.graph.openapi import build_openapi
from tests.ingress.test_surface import PREFIXES

ROOT = Path(__file__).resolve().parents[2]
TRACKED = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split()
FILE_NAMES = {Path(name).name for name in TRACKED}
# Decisions and the changelog also name files that are gone.
DOCUMENTS = [
    name for name in TRACKED if re.fullmatch(r"(docs/)?[^/]+\.md", name) and name != "CHANGELOG.md"
]
_FILE = r"`([\w./-]+\.(?:py|yaml|yml|sh|sql|md|lock))(?:: \w+)?`"
_IN_COMMANDS = r"\btests/[\w/]+\.py\b"


def found(pattern, document):
    return set(re.findall(pattern, (ROOT / document).read_text()))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_files_exist(document):
    named = found(_FILE, document) | found(_IN_COMMANDS, document)
    missing = {name for name in named if "/" in name and not (ROOT / name).exists()}
    assert missing | {name for name in named if "/" not in name and name not in FILE_NAMES} == set()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_and_modules_of_commands_exist(document):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert found(r"\bmake ([a-z][a-z-]+)", document) <= targets
    modules = {name.rstrip(".") for name in found(r"python3? -m ([a-z_][\w.]+)", document)}
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []


@pytest.fixture(scope="module")
def routes():
    return build_openapi(PREFIXES)["paths"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_routes_exist(document, routes):
    """A base URL is the beginning of a route."""
    ours = f"(?:{'|'.join(PREFIXES.values())})"
    named = {name.rstrip("./:") for name in found(rf"{ours}/[\w/{{}}.$:-]+", document)}
    known = [re.sub(r"\{[^}]+\}", "{}", path) for path in routes]
    patterns = [re.compile(path.replace("{}", "[^/]+")) for path in known]
    assert {
        name
        for name in named
        if not any(path.fullmatch(name) for path in patterns)
        and not any(path.startswith(f"{name}/") for path in known)
    } == set()
