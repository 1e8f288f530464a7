"""Reads and checks all files of the Serve graph before anything is deployed."""

from __future__ import annotations

import importlib
import inspect
import typing
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from configs.environment import Environment
from configs.yaml_files import describe, parse_yaml
from contracts.errors import ConfigurationError

if TYPE_CHECKING:
    from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema


# Modules of builders that have moved: an operator's own Serve file may still name them.
MOVED = {
    f"deployments.{name}": f"deployments.{new}"
    for name, new in {
        "llm_app": "llm.app",
        "memory_app": "memory.app",
        "tools_app": "tools.app",
        "agents_app": "agents.app",
        "workspace_app": "workspace.app",
        "root_app": "graph.root",
    }.items()
}


def deploy_config(file: Path, environment: Environment) -> ServeDeploySchema:
    """Returns Serve's configuration from `file`, listening where the environment says.

    Raises:
        ConfigurationError: the file is missing, no YAML, or no Serve configuration; a builder is
            missing or does not take its `args`; a file with further applications is wrong.
    """
    from ray.serve.schema import ServeDeploySchema  # noqa: PLC0415  # reads variables

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigurationError(f"{file.name}: cannot be read") from None
    config: ServeDeploySchema = parse_yaml(text, ServeDeploySchema, name=file.name)
    config.http_options.host = environment.host
    config.http_options.port = environment.port
    _add_further(config)
    return config


def _add_further(config: ServeDeploySchema) -> None:
    """Adds the applications that settings name, unless the file lists them itself.

    An application's module offers them as `further_applications(args)`, beside its builder.
    """
    from ray.serve.schema import ServeApplicationSchema  # noqa: PLC0415

    listed = {application.name for application in config.applications}
    for application in list(config.applications):
        further = getattr(_checked_module(application), "further_applications", None)
        config.applications += [
            ServeApplicationSchema.model_validate(each)
            for each in (further(application.args) if further else [])
            if each["name"] not in listed
        ]


def with_live_config(config: ServeDeploySchema) -> ServeDeploySchema:
    """Returns `config` with each deployment's `user_config` from the files as they are now.

    An application's module offers it as `live_config(args) -> {deployment: user_config}`, beside
    its builder. The `args` of every application are checked.

    Raises:
        ConfigurationError: a file is wrong, or a builder is missing or does not take its `args`.
    """
    from ray.serve.schema import DeploymentSchema  # noqa: PLC0415

    for application in config.applications:
        module = _checked_module(application)
        live_config = getattr(module, "live_config", None)
        if live_config is None:
            continue
        known = {deployment.name: deployment for deployment in application.deployments}
        for name, values in live_config(application.args).items():
            if name not in known:
                known[name] = DeploymentSchema(name=name)
                application.deployments.append(known[name])
            known[name].user_config = values
    return config


def _checked_module(application: ServeApplicationSchema) -> ModuleType:
    """Returns the module of the application's builder, after a check of its `args`."""
    where = f"application `{application.name}`"
    name, _, builder_name = application.import_path.partition(":")
    if name in MOVED:
        raise ConfigurationError(
            f"{where}: import_path: `{name}` has moved: write `{MOVED[name]}:{builder_name}`"
        )
    try:
        module = importlib.import_module(name)
        builder = getattr(module, builder_name)
    except (ImportError, AttributeError):
        raise ConfigurationError(
            f"{where}: import_path: there is no `{application.import_path}`"
        ) from None
    model = _args_model(builder)
    if model is not None:
        try:
            model.model_validate(application.args)
        except ValidationError as error:
            raise ConfigurationError(f"{where}: args: {describe(error)}") from None
    return module


def _args_model(builder: Any) -> type[BaseModel] | None:
    """Returns the model by which Serve checks the `args` of a builder; None without one."""
    if not inspect.isfunction(builder):
        return None
    first = next(iter(inspect.signature(builder).parameters), "")
    model = typing.get_type_hints(builder).get(first)
    return model if inspect.isclass(model) and issubclass(model, BaseModel) else None
