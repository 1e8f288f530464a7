"""Which Python packages hold tools, and in which folders. None of them is imported here."""

from __future__ import annotations

import compileall
import importlib.util
import re
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from contracts.errors import ConfigurationError
from executors.secrets import NotCalled

# Targets and `python_packages` name a shipped package so, wherever its folder is.
_SHIPPED = {name: Path(__file__).resolve().parents[1] / name for name in ("toolbox", "conversion")}
_TARGET = re.compile(
    r"(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<function>[A-Za-z]\w*)", re.ASCII
)


@dataclass(frozen=True, slots=True)
class FunctionTarget:
    """A function of a registered package. `path` is the package's folder."""

    package: str
    path: str
    module: str
    function: str


class Packages:
    """The registered packages by name.

    Raises ConfigurationError for a name that is no importable package with an `__init__.py`.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._paths = {name: _folder(name) for name in names}

    def compile(self) -> None:
        """Compiles the packages and the child's modules where it may, so that no call has to."""
        for path in (*self._paths.values(), str(Path(__file__).parent / "child")):
            compileall.compile_dir(path, quiet=2)

    def find(self, target: str) -> FunctionTarget:
        """Returns what `module:function` names. Raises NotCalled."""
        match = _TARGET.fullmatch(target)
        if match is None:
            raise NotCalled("unavailable", "the tool's target must be `module:function`")
        package = match["module"].partition(".")[0]
        if package not in self._paths:
            raise NotCalled("unavailable", f"the tool's package `{package}` is not registered")
        return FunctionTarget(package, self._paths[package], match["module"], match["function"])


def site_packages() -> list[str]:
    """Returns the folders of this installation's libraries."""
    paths = sysconfig.get_paths()
    return list(dict.fromkeys([paths["purelib"], paths["platlib"]]))


def _folder(name: str) -> str:
    if name in _SHIPPED:
        return str(_SHIPPED[name])
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or spec.origin is None or Path(spec.origin).name != "__init__.py":
        raise ConfigurationError(
            f"the tool package `{name}` is not an importable package with an __init__.py"
        )
    return str(Path(spec.origin).resolve().parent)
