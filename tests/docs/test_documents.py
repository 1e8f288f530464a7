"""Documents lead where they say: links resolve, and every decision is in the index."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DECISIONS = ROOT / "docs/decisions"
DOCUMENTS = [
    ROOT / name
    for name in subprocess.check_output(["git", "ls-files", "*.md"], cwd=ROOT, text=True).split()
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_files_resolve(document):
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", text)
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_wraps_at_120_columns(document):
    prose = re.sub(r"^ *```.*?^ *```$", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"\]\(\S+\)", "]", prose)
    lines = [
        line for line in prose.splitlines() if not line.startswith("|") and " " in line.strip()
    ]
    assert [line for line in lines if len(line) > 120] == []


def test_every_decision_is_in_the_index_once():
    linked = re.findall(
        r"^- \[(\d{3})\]\((\S+)\)", (DECISIONS / "README.md").read_text(), re.MULTILINE
    )
    assert sorted(linked) == sorted(
        (path.name[:3], path.name) for path in DECISIONS.glob("[0-9]*.md")
    )
