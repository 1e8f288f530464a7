"""The application `llm`: one ingress deployment, `LLMProxy`.

Serve inspects `build`'s annotations, so this module must not postpone them
(`from __future__ import annotations`).
"""

from typing import Annotated, Any

from pydantic import Field
from ray import serve
from ray.serve.deployment import Application

from configs.engines.config import FileName, load_engines
from configs.environment import read_environment
from configs.llm.config import LLMSettings
from configs.stores import find_stores
from configs.yaml_files import load_yaml
from contracts.errors import ConfigurationError
from contracts.shapes import Strict
from deployments.engines.app import APPLICATION as ENGINES
from deployments.engines.chat_models import LOCAL_LLM, ChatModel, chat_model
from deployments.engines.clients import EngineClient, open_embedder
from deployments.engines.sleeping import open_engines
from deployments.graph.resources import (
    Resources,
    WingEnvironment,
    access_control,
    open_access,
    open_event_log,
    tune_interpreter,
)
from deployments.llm.limit_authority import AuthorityClient
from deployments.llm.wiring import LLMPorts, LLMRuntime
from interfaces.http.base.ingress import Ingress
from interfaces.http.llm.openai import OPENAI_ERRORS
from providers.registry import check_types

APPLICATION = "llm"
DEPLOYMENT = "LLMProxy"
SETTINGS_FILE = "llm.yaml"


class LLMArgs(Strict):
    """`args` of the application.

    `engines_file` is the file that the application `engines` reads; its section `embedder` counts.
    `max_concurrent` bounds the calls in work per replica; more are answered 503 at once.
    """

    engines_file: FileName = "engines.yaml"
    max_concurrent: Annotated[int, Field(ge=1)] = 1_000


class LLMReplica:
    """Serves one `LLMRuntime` over HTTP."""

    async def __init__(self, args: LLMArgs) -> None:  # type: ignore[misc]  # Serve awaits it
        tune_interpreter()
        self._args = args
        self._environment = environment = read_environment()
        self._engines: dict[str, tuple[ChatModel, EngineClient]] = {}
        embedder = load_engines(environment, args.engines_file).embedder
        async with Resources() as resources:
            self._events = open_event_log(environment, APPLICATION, resources=resources)
            self._access = await open_access(environment, self._events, resources)
            ports = LLMPorts(
                engine=EngineClient(LOCAL_LLM, ENGINES),
                embedder=resources.closing(open_embedder(embedder, environment, own_vectors=True)),
                authority=AuthorityClient(),
            )
            self._runtime = resources.closing(
                LLMRuntime(
                    WingEnvironment.of(environment, self._access), ports, embedder, self._events
                )
            )
            await self._runtime.open()
            self._resources = resources.pop_all()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes the routes and limits of `llm.yaml`; calls under way keep the old ones."""
        settings = dict(user_config)
        given = settings.pop(ENGINES, {})
        models = {name: ChatModel.model_validate(model) for name, model in given.items()}
        self._engines = open_engines(models, self._engines)
        engines = {name: engine for name, (_, engine) in self._engines.items()}
        await self._runtime.reconfigure(LLMSettings.model_validate(settings), engines)

    def __serve_build_asgi_app__(self) -> Ingress:  # Serve's hook
        """Returns the ASGI application of this replica."""
        return Ingress(
            self._runtime.router(),
            access_control(self._environment, self._access),
            self._events,
            max_concurrent=self._args.max_concurrent,
            application=APPLICATION,
            on_shutdown=self._resources.aclose,
            error_shapes=OPENAI_ERRORS,
        )


def build(args: LLMArgs) -> Application:
    """Returns the application's graph.

    Raises:
        ConfigurationError: `llm.yaml` or the section `embedder` is wrong, or PostgreSQL unknown.
    """
    environment = read_environment()
    find_stores(environment)
    live = live_config(args.model_dump())
    ingress = serve.deployment(
        serve.ingress()(LLMReplica), name=DEPLOYMENT, user_config=live[DEPLOYMENT]
    )
    return ingress.bind(args)


def live_config(args: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns each deployment's `user_config` from the files as they are now, for a reload.

    Raises:
        ConfigurationError: `llm.yaml` is wrong, or its local model is not that of `engines_file`.
    """
    environment = read_environment()
    engines = load_engines(environment, LLMArgs.model_validate(args).engines_file)
    settings = load_yaml(environment.config_dir / SETTINGS_FILE, LLMSettings)
    check_types(settings)
    try:
        settings = settings.with_local_model(
            engines.local_llm.served_name,
            engines.local_llm.engine.max_model_len,
            {
                name: (model.served_name, model.engine.max_model_len)
                for name, model in engines.local_llms.items()
            },
        )
    except ValueError as error:
        raise ConfigurationError(f"{SETTINGS_FILE}: {error}") from None
    # Only what is set: an override inherits the rest.
    live = settings.model_dump(mode="json", exclude_unset=True)
    if engines.local_llms:
        live[ENGINES] = {
            model.served_name: chat_model(name, model).model_dump()
            for name, model in engines.local_llms.items()
        }
    return {DEPLOYMENT: live}
