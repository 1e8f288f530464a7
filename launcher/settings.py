"""Validates every configuration file of the product before anything is started."""

from __future__ import annotations

from pydantic import BaseModel

from configs.agents import load_blueprints
from configs.engines.config import DEFAULT_FOLDER, EnginesSettings
from configs.engines.model_source import find_model
from configs.environment import Environment
from configs.llm.config import LLMSettings
from configs.memory import MemorySettings
from configs.tools import ToolsSettings
from configs.yaml_files import load_yaml

_MODELS: dict[str, type[BaseModel]] = {
    "llm.yaml": LLMSettings,
    "engines.yaml": EnginesSettings,
    "engines.gpu.yaml": EnginesSettings,
    "memory.yaml": MemorySettings,
    "tools.yaml": ToolsSettings,
}
_OPTIONAL = "engines.gpu.yaml"
"""Only the GPU profile reads it."""


def check_settings(environment: Environment) -> None:
    """Validates all files; the graph checks what only a deployment knows, such as adapters.

    Raises:
        ConfigurationError: names file, key and reason.
    """
    for name, model in _MODELS.items():
        file = environment.config_dir / name
        if name != _OPTIONAL or file.exists():
            load_yaml(file, model)
    load_blueprints(environment.config_dir)
    if environment.model is not None:  # the engine would fail a minute later
        find_model(environment.model, DEFAULT_FOLDER, "DAARION_MODEL", environment)
