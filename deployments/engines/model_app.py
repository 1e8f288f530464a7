"""The application `engine-<name>` of one entry of `local_llms`.

Serve inspects `build`'s annotations, so this module must not postpone them
(`from __future__ import annotations`).
"""

from typing import Any

from ray.serve.deployment import Application

from configs.engines.config import FileName, ModelName, NamedLLMSettings, load_engines
from configs.environment import read_environment
from contracts.shapes import Strict
from deployments.engines.app import chat_engine, live_settings
from deployments.engines.chat_models import LOCAL_LLM


class ModelArgs(Strict):
    """`args` of the application: an entry of `local_llms` in `settings_file`.

    Another `version` restarts the engine.
    """

    settings_file: FileName = "engines.yaml"
    model: ModelName
    version: str = ""


def build(args: ModelArgs) -> Application:
    """Returns the application's graph: the engine alone.

    Raises:
        ConfigurationError: `settings_file` is wrong or lacks the model, or the model is missing.
    """
    settings = _settings(args)
    section = f"local_llms.{args.model}"
    return chat_engine(settings, read_environment(), settings.placement, section)


def live_config(args: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the engine's `user_config` from the file as it is now, for a reload.

    Raises:
        ConfigurationError: as `build`.
    """
    return {LOCAL_LLM: live_settings(_settings(ModelArgs.model_validate(args)))}


def replica_bundles(args: dict[str, Any]) -> dict[str, list[dict[str, float]]]:
    """Returns the resources of a node that one replica takes, by Ray's names.

    Raises:
        ConfigurationError: as `build`.
    """
    return {LOCAL_LLM: _settings(ModelArgs.model_validate(args)).replica_bundles}


def _settings(args: ModelArgs) -> NamedLLMSettings:
    return load_engines(read_environment(), args.settings_file).named_model(args.model)
