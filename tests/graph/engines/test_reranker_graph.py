"""The section `reranker`: the graph that it makes, and that graph's reranker in a real Serve."""

import os
import shutil
import subprocess
import sys

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from configs.engines.config import load_engines
from configs.environment import REPOSITORY, read_environment
from contracts.errors import ConfigurationError
from deployments.engines.app import EnginesArgs, build, replica_bundles
from deployments.graph.node_fit import fit
from tests.support.engines.tiny_models import cross_encoder, encoder


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A configuration whose engines are empty folders."""
    configs = tmp_path / "configs"
    shutil.copytree(REPOSITORY / "configs", configs, ignore=shutil.ignore_patterns("*.py"))
    for name in ("smollm2-135m-instruct", "multilingual-e5-small", "ms-marco"):
        model = tmp_path / "data" / "models" / name
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
    monkeypatch.setenv("DAARION_CONFIG_DIR", str(configs))
    monkeypatch.setenv("DAARION_DATA_DIR", str(tmp_path / "data"))
    return read_environment()


def with_reranker(environment, file="engines.yaml", **section):
    content = yaml.safe_load((environment.config_dir / "engines.yaml").read_text())
    content["reranker"] = {"model": "models/ms-marco", **section}
    (environment.config_dir / file).write_text(yaml.safe_dump(content))


def engines(**args):
    """Returns the deployments of the application, by name."""
    bound = [
        part._bound_deployment  # the graph's own structure has no public reader
        for part in build(EnginesArgs(**args))._bound_deployment.init_args
    ]
    return {deployment.name: deployment for deployment in bound}


@pytest.mark.parametrize("file", ["engines.yaml", "engines.gpu.yaml"])
def test_no_shipped_file_has_a_reranker(environment, file):
    assert load_engines(environment, file).reranker is None
    assert engines(settings_file=file).keys() == {"LocalLLM", "Embedder"}
    assert "Reranker" not in replica_bundles({"settings_file": file})


def test_the_section_alone_makes_the_deployment_with_its_own_share(environment):
    with_reranker(environment, threads=3)
    reranker = engines(reranker_num_gpus=0.1, reranker_num_cpus=0.7)["Reranker"]
    options = reranker.ray_actor_options
    assert (options["num_cpus"], options["num_gpus"]) == (0.7, 0.1)
    variables = options["runtime_env"]["env_vars"]
    assert (variables["OMP_NUM_THREADS"], variables["HF_HUB_OFFLINE"]) == ("3", "1")
    assert reranker.init_kwargs["source"] == str(environment.data_dir / "models" / "ms-marco")


def test_the_model_may_be_a_hub_id(environment):
    with_reranker(environment, model="BAAI/bge-reranker-v2-m3")
    reranker = engines()["Reranker"]
    assert reranker.init_kwargs["source"] == "BAAI/bge-reranker-v2-m3"
    assert reranker.ray_actor_options["runtime_env"]["env_vars"]["HF_HUB_OFFLINE"] == "0"


@pytest.mark.parametrize("model", ["default", "nothing", "./no/such"])
def test_a_model_that_is_nowhere_is_named(environment, model):
    with_reranker(environment, model=model)
    expected = f"engines.yaml: reranker.model: `{model}` is neither a folder with a config.json, "
    with pytest.raises(ConfigurationError) as refused:
        build(EnginesArgs())
    assert refused.value.message == f"{expected}nor a hub id `owner/name`"


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"colour": "red"}, "reranker.colour"),
        ({"max_tokens": 4_096}, "reranker"),
        ({"queue": {"max_texts_per_tenant": 10}}, "reranker.queue"),
        ({"queue": {"passage_share": 0.5}}, "reranker.queue.passage_share"),
    ],
    ids=lambda it: it if isinstance(it, str) else "",
)
def test_a_mistake_is_named(environment, section, key):
    with_reranker(environment, **section)
    with pytest.raises(ConfigurationError, match=f"^engines.yaml: {key}: "):
        load_engines(environment)


def test_a_node_has_to_hold_the_reranker_too(environment):
    with_reranker(environment)
    content = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())
    content["applications"] = content["applications"][:1]
    config = ServeDeploySchema.model_validate(content)
    fit(config, {"CPU": 1.2})
    config.applications[0].args["reranker_num_cpus"] = 0.5
    with pytest.raises(ConfigurationError, match=r"reserves 1\.4 CPUs and this machine has 1"):
        fit(config, {"CPU": 1.2})


SERVED = """
import asyncio
import ray
from ray import serve
from contracts.deadline import Deadline
from contracts.errors import DaarionError
from deployments.engines.app import APPLICATION, Engines, EnginesArgs, build
from deployments.engines.clients import RerankerClient
from deployments.graph.serve_graph import not_running

ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"location": "NoServer"})
client = RerankerClient()

def deploy(settings_file):
    parts = build(EnginesArgs(settings_file=settings_file))._bound_deployment.init_args
    engines = serve.deployment(Engines, name="Engines")
    serve.run(engines.bind(parts[-1]), name=APPLICATION, route_prefix=None)

async def ask(texts, seconds=60):
    try:
        deadline = Deadline.after(seconds)
        scores = await client.score("w h y", texts, tenant="microdao:7/agent:a", deadline=deadline)
        print("scores", all(0 <= score <= 1 for score in scores), len(scores), flush=True)
    except DaarionError as error:
        print(type(error).__name__, error.message, flush=True)

async def main():
    await ask(["before it is there"])
    await asyncio.to_thread(deploy, "engines.yaml")
    await asyncio.sleep(1)  # the client looks for the handle once a second
    await client.ping()
    await ask(["a b c", "b", "x " * 10_000])
    await ask([])
    await ask(["late"], 0)
    try:
        await asyncio.to_thread(deploy, "engines.wrong.yaml")
    except RuntimeError:
        try:
            not_running()
        except DaarionError as error:
            print(type(error).__name__, error.message, flush=True)

asyncio.run(main())
ray.shutdown()
"""


@pytest.mark.timeout(300)
def test_serve_runs_the_reranker_and_refuses_what_is_none(environment, tmp_path):
    """Alone, without the other engines."""
    wrong = encoder(tmp_path / "wrong")
    with_reranker(environment, "engines.wrong.yaml", model=str(wrong))
    with_reranker(environment, model=str(cross_encoder(tmp_path / "good")))
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", SERVED],
        cwd=REPOSITORY,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert lines[:4] == [
        "EngineUnavailable the reranker is still starting: retry",
        "scores True 3",
        "InvalidRequest send from 1 to 512 texts a call",
        "DeadlineExceeded no answer within 0 s: raise `timeout_s`, or ask for less",
    ], done.stderr[-3_000:]
    assert lines[4].startswith("ConfigurationError application `engines` cannot be deployed: ")
    assert f"reranker.model: `{wrong}` is no cross-encoder" in lines[4]
