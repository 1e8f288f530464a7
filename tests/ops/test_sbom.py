"""`make sbom` describes the environment as a CycloneDX document."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


def test_the_bill_of_materials_names_every_direct_dependency(tmp_path):
    (recipe,) = [
        line for line in (ROOT / "Makefile").read_text().splitlines() if "cyclonedx-py" in line
    ]
    assert "environment --pyproject pyproject.toml" in recipe
    output = tmp_path / "sbom.json"
    command = [
        *(str(Path(sys.executable).with_name("cyclonedx-py")), "environment"),
        *("--pyproject", "pyproject.toml", "--output-file", str(output)),
        *("--no-validate", sys.executable),  # `make sbom` validates: that takes twenty seconds
    ]
    subprocess.run(command, cwd=ROOT, check=True, timeout=100)
    document = json.loads(output.read_text())
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    root = document["metadata"]["component"]
    assert root["name"] == "daarion-serve"
    names = {item["bom-ref"]: canonicalize_name(item["name"]) for item in document["components"]}
    (direct,) = [
        entry["dependsOn"] for entry in document["dependencies"] if entry["ref"] == root["bom-ref"]
    ]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    assert declared <= {names[reference] for reference in direct}
    assert all(item["version"] for item in document["components"])
