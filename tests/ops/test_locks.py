"""The lock files are complete, have hashes and no addresses, and agree with pyproject.toml."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PYTHONS = ("3.11", "3.12", "3.13")
PROFILES = ("cpu", "general", "gpu", "dev")
ENTRY = re.compile(r"([a-z0-9-]+)={2,3}([^=\s]+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n")


def pins(profile: str, python: str) -> dict[str, Version]:
    text = (ROOT / f"ops/locks/{profile}-{python}.lock").read_text()
    return {name: Version(version) for name, version, _ in ENTRY.findall(text)}


def declared(profile: str) -> list[Requirement]:
    """Returns a profile's requirements in pyproject.toml, with included extras and groups."""
    if profile == "dev":
        return [Requirement(line) for line in group("dev")]
    extra = {"general": "cpu"}.get(profile, profile)
    lines = [*PROJECT["project"]["dependencies"], *extra_lines(extra)]
    return [Requirement(line) for line in lines]


def group(name: str) -> list[str]:
    entries = PROJECT["dependency-groups"][name]
    return [
        line
        for entry in entries
        for line in ([entry] if isinstance(entry, str) else group(entry["include-group"]))
    ]


def extra_lines(name: str) -> list[str]:
    found = []
    for line in PROJECT["project"]["optional-dependencies"][name]:
        requirement = Requirement(line)
        if requirement.name == PROJECT["project"]["name"]:
            found += [inner for extra in requirement.extras for inner in extra_lines(extra)]
        else:
            found.append(line)
    return found


def test_each_profile_has_a_lock_for_each_python_and_there_is_no_other_lock():
    files = {path.name for path in (ROOT / "ops/locks").iterdir()}
    assert files == {f"{profile}-{python}.lock" for profile in PROFILES for python in PYTHONS}
    assert not list(ROOT.glob("uv.lock"))
    bounds = Requirement(f"python{PROJECT['project']['requires-python']}").specifier
    assert [f"3.{minor}" for minor in range(8, 20) if f"3.{minor}" in bounds] == list(PYTHONS)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("profile", PROFILES)
def test_a_lock_holds_versions_with_hashes_and_nothing_else(profile, python):
    text = (ROOT / f"ops/locks/{profile}-{python}.lock").read_text()
    assert ENTRY.sub("", text) == ""
    assert len(pins(profile, python)) == len(ENTRY.findall(text)) > len(declared(profile)) / 2


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("profile", PROFILES)
def test_a_lock_agrees_with_pyproject(profile, python):
    locked = pins(profile, python)
    wrong = [
        str(requirement)
        for requirement in declared(profile)
        if (version := locked.get(canonicalize_name(requirement.name))) is None
        or version not in requirement.specifier
    ]
    assert wrong == [], "run `make lock`"


@pytest.mark.parametrize("python", PYTHONS)
def test_the_locks_of_one_machine_fit_together(python):
    cpu, general, tools = (pins(profile, python) for profile in ("cpu", "general", "dev"))
    assert {name: general[name] for name in cpu if name != "torch"} == {
        name: version for name, version in cpu.items() if name != "torch"
    }
    assert (cpu["torch"].local, general["torch"].local) == ("cpu", None)
    assert cpu["torch"].public == general["torch"].public
    assert {name for name in tools.keys() & general.keys() if tools[name] != general[name]} == set()
    unused = {"torchvision", "torchaudio", "torchcodec", "triton"}
    assert not unused & (cpu.keys() | general.keys())
    assert not [name for name in cpu if name.startswith(("nvidia-", "cuda-"))]


def test_hashes_are_those_of_wheels_that_the_python_can_install():
    spec = importlib.util.spec_from_file_location("lock", ROOT / "ops/lock.py")
    lock = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lock)

    def fits(filename: str, python: str) -> bool:
        return bool(parse_wheel_filename(filename)[3] & lock.supported_tags(python))

    assert fits("a-1-py3-none-any.whl", "3.11")
    assert fits("a-1-cp38-abi3-manylinux_2_28_x86_64.whl", "3.13")
    assert fits("a-1-cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", "3.12")
    for other in (
        "a-1-cp311-cp311-manylinux_2_17_x86_64.whl",
        "a-1-cp312-cp312-manylinux_2_17_aarch64.whl",
        "a-1-cp312-cp312-musllinux_1_2_x86_64.whl",
        "a-1-cp312-cp312-manylinux_2_39_x86_64.whl",
        "a-1-cp313-abi3-manylinux_2_17_x86_64.whl",
    ):
        assert not fits(other, "3.12"), other
    package = {
        "name": "a",
        "version": "1",
        "wheels": [
            {"url": "http://x/a-1-cp312-cp312-win_amd64.whl", "hashes": {"sha256": "0" * 64}}
        ],
    }
    with pytest.raises(SystemExit, match=r"a 1 has no wheel for Python 3\.12"):
        lock.fitting(package, "3.12")
