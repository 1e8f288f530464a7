"""Reads a YAML file into its strict model; errors name file, key and reason in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from contracts.errors import ConfigurationError

MAX_FILE_BYTES = 4 << 20

Model = TypeVar("Model", bound=BaseModel)


def load_yaml(path: Path, model: type[Model]) -> Model:
    """Returns `model` filled from `path`.

    Raises:
        ConfigurationError: the file is missing or no YAML, or a key is duplicate, unknown or wrong.
    """
    return parse_yaml(_read(path), model, name=path.name)


def parse_yaml(text: str, model: type[Model], *, name: str) -> Model:
    """Like `load_yaml`, for a text; `name` is the name of the file in errors."""
    try:
        content = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{name}: not valid YAML: {_one_line(error)}") from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"{name}: must be a mapping of keys to values")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ConfigurationError(f"{name}: {describe(error)}") from None


def describe(error: ValidationError) -> str:
    """Returns `key.path: reason` of at most five mistakes, joined by `; `, without the values."""
    mistakes = error.errors(include_url=False, include_input=False, include_context=False)
    lines = [
        f"{'.'.join(str(part) for part in mistake['loc']) or '(file)'}: {mistake['msg']}"
        for mistake in mistakes[:5]
    ]
    if len(mistakes) > len(lines):
        lines.append(f"and {len(mistakes) - len(lines)} more")
    return "; ".join(lines)


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigurationError(f"{path.name}: larger than {MAX_FILE_BYTES >> 20} MiB")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigurationError(
            f"{path.name}: not found in the configuration directory (DAARION_CONFIG_DIR)"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path.name}: cannot be read: {type(error).__name__}") from None


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "cannot be parsed"
    return f"{problem} (line {mark.line + 1})" if mark else str(problem)


class _UniqueKeyLoader(yaml.SafeLoader):
    """A SafeLoader that refuses duplicate keys; YAML silently takes the last."""

    def construct_mapping(
        self,
        node: yaml.MappingNode,
        deep: bool = False,  # noqa: FBT001, FBT002  # the base's signature
    ) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key `{key}`", key_node.start_mark
                )
            seen.add(key if isinstance(key, str) else id(key_node))
        return super().construct_mapping(node, deep=deep)
