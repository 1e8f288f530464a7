"""Several local models: their settings, their applications, and who names them; no server."""

import shutil

import pytest
import yaml

from configs.engines.config import load_engines
from configs.environment import REPOSITORY, read_environment
from contracts.errors import ConfigurationError
from deployments.engines.model_app import ModelArgs, build
from deployments.graph.config import deploy_config, with_live_config
from deployments.graph.node_fit import fit
from deployments.llm.app import live_config as llm_live_config

SERVE_FILE = REPOSITORY / "serve_config.yaml"
ENGINE = {"max_model_len": 2048, "max_num_seqs": 4, "max_unfinished": 8}
ENTRY = {"model": "default", "served_name": "tiny", "engine": ENGINE}


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A configuration and a data folder of the test's own, with empty folders as default models."""
    shutil.copytree(
        REPOSITORY / "configs",
        tmp_path / "configs",
        ignore=shutil.ignore_patterns("*.py", "__pycache__"),
    )
    for name in ("smollm2-135m-instruct", "multilingual-e5-small"):
        model = tmp_path / "data" / "models" / name
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
    monkeypatch.setenv("DAARION_CONFIG_DIR", str(tmp_path / "configs"))
    monkeypatch.setenv("DAARION_DATA_DIR", str(tmp_path / "data"))
    return read_environment()


def write(environment, models, logical=None):
    for file, change in (
        ("engines.yaml", lambda content: content.update(local_llms=models)),
        ("llm.yaml", lambda content: content["models"].update(logical or {})),
    ):
        path = environment.config_dir / file
        content = yaml.safe_load(path.read_text())
        change(content)
        path.write_text(yaml.safe_dump(content, sort_keys=False))


def graph(environment):
    config = with_live_config(deploy_config(SERVE_FILE, environment))
    return {application.name: application for application in config.applications}


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"colour": "red"}, r"local_llms\.tiny\.colour"),
        ({"num_gpus": 2}, r"local_llms\.tiny\.num_gpus"),
        ({"min_replicas": 2}, "max_replicas: must be at least min_replicas"),
        ({"when_asleep": "snore"}, r"local_llms\.tiny\.when_asleep"),
        ({"num_gpus": 0.5}, "gpu_memory_utilization: above the engine's share of a GPU"),
        ({"served_name": "smollm2-135m-instruct"}, "is that of local_llm, too"),
        ({"tensor_parallel_size": 2, "num_gpus": 0.5}, "takes whole ones"),
    ],
    ids=["unknown key", "gpus", "replicas", "asleep", "share", "served twice", "parallel"],
)
def test_a_wrong_entry_is_named(environment, entry, expected):
    write(environment, {"tiny": {**ENTRY, **entry}})
    with pytest.raises(ConfigurationError, match=expected):
        load_engines(environment)


def test_a_missing_model_and_its_section_are_named(environment):
    write(environment, {"tiny": {**ENTRY, "model": "nowhere"}})
    with pytest.raises(ConfigurationError, match=r"local_llms\.tiny\.model: `nowhere`"):
        build(ModelArgs(model="tiny"))
    with pytest.raises(ConfigurationError, match=r"`other` is not among `local_llms`.* tiny"):
        build(ModelArgs(model="other"))


def test_each_model_is_an_application_of_its_own_and_no_other_changes(environment):
    before = graph(environment)
    write(environment, {"tiny": ENTRY, "other": {**ENTRY, "served_name": "other"}})
    after = graph(environment)
    assert after.keys() - before.keys() == {"engine-tiny", "engine-other"}
    assert all(after[name] == before[name] for name in before.keys() - {"llm"})
    assert after["llm"].args == before["llm"].args
    engine = build(ModelArgs.model_validate(after["engine-tiny"].args))._bound_deployment
    assert engine.name == "LocalLLM"
    (listed,) = after["engine-tiny"].deployments
    assert listed.user_config == {"default_sampling": {
        "temperature": None, "top_p": None, "repetition_penalty": None, "max_tokens": None
    }, "structured": {
        "max_string_length": None, "max_items": None, "repetition_penalty": None
    }}  # fmt: skip
    assert listed.max_ongoing_requests > ENGINE["max_unfinished"]


@pytest.mark.parametrize(
    ("change", "restarts"),
    [
        ({"min_replicas": 0, "idle_s": 60}, False),
        ({"default_sampling": {"temperature": 0.5}}, False),
        ({"engine": {**ENGINE, "max_model_len": 1024}}, True),
        ({"num_gpus": 1}, True),
    ],
    ids=["replicas", "sampling", "engine", "gpus"],
)
def test_a_changed_entry_restarts_only_what_has_to(environment, change, restarts):
    write(environment, {"tiny": ENTRY})
    before = graph(environment)["engine-tiny"]
    write(environment, {"tiny": {**ENTRY, **change}})
    after = graph(environment)["engine-tiny"]
    assert (after.args != before.args) == restarts
    assert after != before


def test_a_serve_file_may_list_a_model_itself(environment, tmp_path):
    write(environment, {"tiny": ENTRY})
    content = yaml.safe_load(SERVE_FILE.read_text())
    own = graph(environment)["engine-tiny"].model_dump(exclude_unset=True)
    own["deployments"] = [{"name": "LocalLLM", "num_replicas": 3}]
    content["applications"].append(own)
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(content))
    config = deploy_config(file, environment)
    (listed,) = [it for it in config.applications if it.name == "engine-tiny"]
    assert listed.deployments[0].num_replicas == 3


def test_a_logical_model_names_its_engine(environment):
    logical = {"mine": {"provider": "local", "model": "tiny"}}
    write(environment, {"tiny": ENTRY}, logical)
    live = llm_live_config({})["LLMProxy"]
    assert live["models"]["mine"]["name"] == "tiny"
    assert live["models"]["mine"]["context_tokens"] == ENGINE["max_model_len"]
    assert live["models"]["dagi-local-8b"]["name"] == "smollm2-135m-instruct"
    assert live["engines"] == {"tiny": {"application": "engine-tiny", "when_asleep": None}}


def test_a_reload_of_min_replicas_reaches_the_proxy(environment):
    seen = []
    for least in (0, 1, 0):
        write(environment, {"tiny": {**ENTRY, "min_replicas": least, "when_asleep": "refuse"}})
        seen.append(llm_live_config({})["LLMProxy"]["engines"]["tiny"]["when_asleep"])
    assert seen == ["refuse", None, "refuse"]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"provider": "local", "model": "huge"}, r"models\.mine\.model: `huge` .* has tiny"),
        ({"provider": "local", "model": "tiny", "name": "else"}, r"serves `tiny`"),
        ({"provider": "openai", "name": "x", "model": "tiny"}, "only for providers of type local"),
    ],
    ids=["unknown", "another name", "remote"],
)
def test_a_logical_model_without_its_engine_is_refused(environment, model, expected):
    write(environment, {"tiny": ENTRY}, {"mine": model})
    with pytest.raises(ConfigurationError, match=expected):
        llm_live_config({})


def test_sleepers_need_room_for_one_of_them_and_waking_ones_for_all(environment):
    node = {"CPU": 8.0, "GPU": 1.0}
    sleeping = {**ENTRY, "num_gpus": 1, "min_replicas": 0}
    write(environment, {"a": sleeping, "b": {**sleeping, "served_name": "b"}})
    fit(deploy_config(SERVE_FILE, environment), node)
    with pytest.raises(ConfigurationError, match="needs 1 GPU and this machine has none"):
        fit(deploy_config(SERVE_FILE, environment), {"CPU": 8.0})
    awake = {**sleeping, "min_replicas": 1}
    write(environment, {"a": awake, "b": {**awake, "served_name": "b"}})
    with pytest.raises(ConfigurationError, match="needs 2 GPUs"):
        fit(deploy_config(SERVE_FILE, environment), node)


def test_an_engine_that_grows_leaves_room_for_a_sleeper(environment):
    growing = {**ENTRY, "num_gpus": 1, "max_replicas": 4}
    sleeper = {**ENTRY, "served_name": "b", "num_gpus": 1, "min_replicas": 0}
    write(environment, {"a": growing, "b": sleeper})
    config = deploy_config(SERVE_FILE, environment)
    fit(config, {"CPU": 8.0, "GPU": 3.0})
    most = {
        it.name: it.deployments[0].autoscaling_config["max_replicas"]
        for it in config.applications
        if it.name.startswith("engine-")
    }
    assert most == {"engine-a": 2, "engine-b": 1}
