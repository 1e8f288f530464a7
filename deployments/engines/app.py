"""The application `engines`: its arguments, its graph, and what may change while it runs.

Serve inspects `build`'s annotations, so this module must not postpone them
(`from __future__ import annotations`). Every process of the application imports it: keep it light.
"""

from typing import Any

from ray import serve
from ray.serve.deployment import Application
from ray.serve.handle import DeploymentHandle

from configs.engines.config import LocalLLMSettings, load_engines, model_source, template_text
from configs.engines.embedder import (
    EmbedderSettings,
    LocalModelSettings,
    RemoteEmbedderSettings,
    embedder_source,
    reranker_source,
)
from configs.engines.model_source import is_hub_id
from configs.engines.placement import Placement
from configs.environment import Environment, read_environment
from contracts.errors import ConfigurationError
from deployments.engines.chat_models import LOCAL_LLM, model_application
from deployments.engines.placement import STRATEGY, EnginesArgs, process_variables

APPLICATION = "engines"
EMBEDDER = "Embedder"
RERANKER = "Reranker"


class Engines:
    """The root of the application's graph. It only binds the engines together."""

    def __init__(self, *engines: DeploymentHandle | None) -> None:
        self._engines = engines


def build(args: EnginesArgs) -> Application:
    """Returns the application's graph.

    Raises:
        ConfigurationError: `settings_file` is wrong, or the model is missing.
    """
    environment = read_environment()
    settings = load_engines(environment, args.settings_file)
    ingress = serve.deployment(
        Engines, name="Engines", ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=8
    )
    engines = [
        _local_llm(settings.local_llm, environment, args),
        _embedder(settings.embedder, environment, args),
    ]
    if settings.reranker is not None:
        engines.append(
            _text_model(
                RERANKER,
                "reranker.LocalReranker",
                settings.reranker,
                reranker_source(settings.reranker, environment),
                environment,
                share={"num_cpus": args.reranker_num_cpus, "num_gpus": args.reranker_num_gpus},
            )
        )
    return ingress.bind(*engines)


def further_applications(args: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the applications of `local_llms`, one each, as a Serve file would list them.

    Raises:
        ConfigurationError: as `build`.
    """
    file = EnginesArgs.model_validate(args).settings_file
    models = load_engines(read_environment(), file).local_llms
    return [model_application(name, model, file) for name, model in models.items()]


def live_config(args: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns each deployment's `user_config` from the files as they are now, for a reload.

    Raises:
        ConfigurationError: as `build`.
    """
    checked = EnginesArgs.model_validate(args)
    settings = load_engines(read_environment(), checked.settings_file).local_llm
    return {LOCAL_LLM: live_settings(settings)}


def replica_bundles(args: dict[str, Any]) -> dict[str, list[dict[str, float]]]:
    """Returns the resources of a node that one replica of each engine takes, by Ray's names.

    Raises:
        ConfigurationError: as `build`.
    """
    checked = EnginesArgs.model_validate(args)
    settings = load_engines(read_environment(), checked.settings_file)
    bundles = {LOCAL_LLM: checked.replica_bundles}
    if not isinstance(settings.embedder, RemoteEmbedderSettings):
        share = {"CPU": checked.embedder_num_cpus, "GPU": checked.embedder_num_gpus}
        bundles[EMBEDDER] = [share]
    if settings.reranker is not None:
        bundles[RERANKER] = [{"CPU": checked.reranker_num_cpus, "GPU": checked.reranker_num_gpus}]
    return bundles


def _local_llm(
    settings: LocalLLMSettings, environment: Environment, args: EnginesArgs
) -> Application:
    if settings.engine.gpu_memory_utilization > args.num_gpus > 0:
        raise ConfigurationError(
            f"{args.settings_file}: local_llm.engine.gpu_memory_utilization: above the engine's "
            f"share of a GPU, {args.num_gpus}: lower it, or raise num_gpus of the application "
            "`engines`"
        )
    return chat_engine(settings, environment, args.placement)


def chat_engine(
    settings: LocalLLMSettings,
    environment: Environment,
    placement: Placement,
    section: str = "local_llm",
) -> Application:
    """Returns the deployment of one chat engine; `section` of the engines' file stands in errors.

    Raises:
        ConfigurationError: the model or its template is missing.
    """
    source = model_source(settings, environment, section)
    variables = process_variables(
        threads=settings.engine.threads,
        cache=str(environment.data_dir / "cache" / "vllm"),
        offline=not is_hub_id(source),
    )
    if settings.engine.enforce_eager:
        # vLLM compiles its sampler even so, at the first answer with a temperature: the engine
        # stops for half a minute, and dies on a machine without a C++ compiler.
        variables["TORCH_COMPILE_DISABLE"] = "1"
    # By name: importing the class would load vllm (10 s), which only the replica needs.
    deployment = serve.deployment(
        name=LOCAL_LLM,
        ray_actor_options={"num_cpus": placement.num_cpus, "runtime_env": {"env_vars": variables}},
        placement_group_bundles=placement.replica_bundles,
        placement_group_strategy=STRATEGY,
        user_config=live_settings(settings),
        max_constructor_retry_count=3,
    )("deployments.engines.local_llm.LocalLLM")
    template = template_text(settings, environment, section)
    bound: Application = deployment.bind(
        settings=settings, source=source, template=template, placement=placement
    )
    return bound


def _embedder(
    settings: EmbedderSettings, environment: Environment, args: EnginesArgs
) -> Application | None:
    """Returns the embedding model's deployment; None where it is an endpoint elsewhere."""
    if isinstance(settings, RemoteEmbedderSettings):
        return None
    source = embedder_source(settings, environment)
    share = {"num_cpus": args.embedder_num_cpus, "num_gpus": args.embedder_num_gpus}
    return _text_model(
        EMBEDDER, "embedder.LocalEmbedder", settings, source, environment, share=share
    )


def _text_model(
    name: str,
    replica: str,
    settings: LocalModelSettings,
    source: str,
    environment: Environment,
    *,
    share: dict[str, float],
) -> Application:
    """Returns the deployment of a sentence-transformers model; `share` is its part of a node."""
    variables = process_variables(
        threads=settings.threads,
        cache=str(environment.data_dir / "cache"),
        offline=not is_hub_id(source),
    )
    # Huge pages: every pass reads all weights, and with small pages misses the page table's cache.
    variables["THP_MEM_ALLOC_ENABLE"] = "1"
    # By name: importing the class would load torch, which only the replica needs.
    deployment = serve.deployment(
        name=name,
        ray_actor_options={**share, "runtime_env": {"env_vars": variables}},
        # Calls wait in the replica's fair lanes; Serve's queue has no priorities.
        max_ongoing_requests=1_000,
        max_queued_requests=1_000,
        max_constructor_retry_count=3,
    )(f"deployments.engines.{replica}")
    bound: Application = deployment.bind(settings=settings, source=source)
    return bound


def live_settings(settings: LocalLLMSettings) -> dict[str, Any]:
    """Returns what a running engine takes without a restart."""
    return {
        "default_sampling": settings.default_sampling.model_dump(),
        "structured": settings.structured.model_dump(),
    }
