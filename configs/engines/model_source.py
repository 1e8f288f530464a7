"""Where a model's weights come from: the built folder, one of the operator's, or a model hub."""

from __future__ import annotations

from pathlib import Path

from configs.environment import Environment
from contracts.errors import ConfigurationError

DEFAULT_MODEL = "default"


def find_model(model: str, default_folder: Path | None, key: str, environment: Environment) -> str:
    """Returns the folder or hub id to load.

    `model` is `default` (`default_folder`, if there is one), a folder, or a hub id; folders are
    absolute or relative to the data directory. A name without a folder counts as a hub id when it
    has the form `owner/name`. `key` names the setting in errors.

    Raises:
        ConfigurationError: the folder does not exist or holds no model.
    """
    if model == DEFAULT_MODEL and default_folder is not None:
        folder = environment.data_dir / default_folder
        if not (folder / "config.json").is_file():
            raise ConfigurationError(
                f"{key}: the default model is not built yet: run `make models`"
            )
        return str(folder)
    folder = environment.data_dir / Path(model).expanduser()
    if (folder / "config.json").is_file():
        return str(folder)
    if is_hub_id(model):
        return model
    default = "" if default_folder is None else "`default`, nor "
    raise ConfigurationError(
        f"{key}: `{model}` is neither {default}a folder with a config.json, "
        "nor a hub id `owner/name`"
    )


def is_hub_id(model: str) -> bool:
    """Whether `model` has the form `owner/name`."""
    owner, _, name = model.partition("/")
    return bool(owner and name) and "/" not in name and not model.startswith((".", "~", "/"))
