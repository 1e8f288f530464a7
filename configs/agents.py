"""Reads the blueprints: `agents/*.yaml`, one file per agent."""

from __future__ import annotations

from pathlib import Path

from configs.yaml_files import load_yaml
from contracts.agents.blueprints import Blueprint
from contracts.errors import ConfigurationError

FOLDER = "agents"
MAX_BLUEPRINTS = 1_000


def load_blueprints(config_dir: Path) -> dict[str, Blueprint]:
    """Returns the blueprints by agent id; an empty dict when the folder is missing.

    Raises:
        ConfigurationError: a file is wrong, or two files describe the same agent.
    """
    files = sorted((config_dir / FOLDER).glob("*.yaml"))
    if len(files) > MAX_BLUEPRINTS:
        raise ConfigurationError(f"{FOLDER}: more than {MAX_BLUEPRINTS} blueprints")
    found: dict[str, Blueprint] = {}
    names: dict[str, str] = {}
    for file in files:
        blueprint = load_yaml(file, Blueprint)
        if blueprint.id in found:
            raise ConfigurationError(
                f"{FOLDER}/{file.name}: id: {blueprint.id} is described by "
                f"{names[blueprint.id]} already"
            )
        found[blueprint.id] = blueprint
        names[blueprint.id] = file.name
    return found
