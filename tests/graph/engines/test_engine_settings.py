"""`engines.yaml`, the placement of engines, and the Serve files as Serve reads them; no server."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ray.serve.deployment import Application
from ray.serve.schema import ServeDeploySchema

from configs.engines.config import (
    EnginesSettings,
    LocalLLMSettings,
    load_engines,
    model_source,
    template_text,
)
from configs.engines.placement import Placement
from configs.environment import read_environment
from configs.llm.config import LLMSettings
from contracts.errors import ConfigurationError
from deployments.engines.app import EnginesArgs, build, live_config
from deployments.engines.placement import process_variables
from deployments.graph.config import MOVED, deploy_config, with_live_config
from deployments.graph.serve_graph import reason

REPOSITORY = Path(__file__).resolve().parents[3]
SERVE_FILES = [REPOSITORY / "serve_config.yaml", REPOSITORY / "configs" / "serve.gpu.yaml"]


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


def edited(environment, change, file="engines.yaml"):
    path = environment.config_dir / file
    content = yaml.safe_load(path.read_text())
    change(content["local_llm"])
    path.write_text(yaml.safe_dump(content))


@pytest.mark.parametrize("file", ["engines.yaml", "engines.gpu.yaml"])
def test_the_shipped_files_are_valid(environment, file):
    settings = load_engines(environment, file)
    assert isinstance(settings, EnginesSettings)
    template_text(settings.local_llm, environment)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda it: it.update(colour="red"), "local_llm.colour"),
        (lambda it: it.pop("served_name"), "local_llm.served_name"),
        (lambda it: it["engine"].update(max_model_len=10), "local_llm.engine.max_model_len"),
        (lambda it: it["engine"].update(max_unfinished=1), "local_llm.engine"),
        (lambda it: it["engine"].update(extra={"model": "x"}), "local_llm.engine.extra"),
        (
            lambda it: it["default_sampling"].update(temperature=float("nan")),
            "local_llm.default_sampling.temperature",
        ),
        (lambda it: it["structured"].update(max_items=0), "local_llm.structured.max_items"),
    ],
)
def test_a_mistake_is_named_by_file_key_and_reason(environment, change, key):
    edited(environment, change)
    with pytest.raises(ConfigurationError) as caught:
        load_engines(environment)
    assert caught.value.message.startswith(f"engines.yaml: {key}: ")
    assert "\n" not in caught.value.message


def test_the_model_is_a_built_folder_a_folder_or_a_hub_id(environment, tmp_path):
    def source(model):
        return model_source(
            LocalLLMSettings(
                model=model, served_name="m", engine=load_engines(environment).local_llm.engine
            ),
            environment,
        )

    default = environment.data_dir / "models" / "smollm2-135m-instruct"
    assert (
        source("default")
        == source("models/smollm2-135m-instruct")
        == source(str(default))
        == str(default)
    )
    assert source("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
    for wrong in ("nothing", "./no/such", str(tmp_path / "none")):
        with pytest.raises(ConfigurationError, match=r"local_llm\.model"):
            source(wrong)
    shutil.rmtree(default)
    with pytest.raises(ConfigurationError, match="make models"):
        source("default")


def test_a_missing_template_is_named(environment):
    edited(environment, lambda it: it.update(chat_template="templates/none.jinja"))
    with pytest.raises(ConfigurationError, match=r"templates/none\.jinja"):
        template_text(load_engines(environment).local_llm, environment)


@pytest.mark.parametrize("file", SERVE_FILES, ids=lambda it: it.name)
def test_serve_accepts_the_files_and_every_deployment_is_explicit(file):
    config = ServeDeploySchema.model_validate(yaml.safe_load(file.read_text()))
    assert [application.name for application in config.applications][:1] == ["engines"]
    assert config.applications[0].route_prefix is None
    for application in yaml.safe_load(file.read_text())["applications"]:
        assert application["deployments"], application["name"]
        for deployment in application["deployments"]:
            assert deployment.keys() >= {
                "max_ongoing_requests", "max_queued_requests",
                "health_check_period_s", "health_check_timeout_s",
                "graceful_shutdown_wait_loop_s", "graceful_shutdown_timeout_s",
            }  # fmt: skip
            assert deployment.keys() & {"num_replicas", "autoscaling_config"}, deployment["name"]


def test_both_files_hold_the_same_graph():
    laptop, gpu = (yaml.safe_load(file.read_text())["applications"] for file in SERVE_FILES)

    def shape(applications):
        return [
            (
                it["name"],
                it["route_prefix"],
                it["import_path"],
                [part["name"] for part in it["deployments"]],
            )
            for it in applications
        ]

    assert shape(laptop) == shape(gpu)


def test_outside_the_laptop_every_ingress_has_two_replicas():
    for application in yaml.safe_load(SERVE_FILES[1].read_text())["applications"]:
        ingress = application["deployments"][0]
        replicas = ingress.get("num_replicas") or ingress["autoscaling_config"]["min_replicas"]
        assert replicas >= 2, ingress["name"]


def test_gpu_engines_are_placed_with_their_workers(environment):
    arguments = yaml.safe_load(SERVE_FILES[1].read_text())["applications"][0]["args"]
    assert isinstance(build(EnginesArgs(**arguments)), Application)
    large = Placement(num_cpus=2, num_gpus=1, accelerator_type="L4", tensor_parallel_size=2)
    assert large.replica_bundles == [
        {"CPU": 2, "GPU": 1, "accelerator_type:L4": 0.001},
        {"GPU": 1, "accelerator_type:L4": 0.001},
    ]
    assert Placement(num_cpus=1, num_gpus=0.8).replica_bundles == [{"CPU": 1, "GPU": 0.8}]
    assert Placement(num_cpus=0.5).replica_bundles == [{"CPU": 0.5}]


def test_a_named_card_is_a_whole_one_unless_a_share_is_given():
    whole = Placement(num_cpus=0.5, num_gpus=1, accelerator_type="L4")
    assert EnginesArgs(accelerator_type="L4", embedder_num_cpus=2).placement == whole
    assert EnginesArgs(accelerator_type="L4", num_gpus=0.5).placement.num_gpus == 0.5


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"accelerator_type": "L4", "num_gpus": 0}, "give a share"),
        ({"num_gpus": 0.5, "tensor_parallel_size": 2}, "takes whole ones: set num_gpus to 1"),
    ],
)
def test_shares_of_gpus_that_cannot_be_placed_are_refused(change, expected):
    with pytest.raises(ValueError, match=expected):
        EnginesArgs(**change)


def test_an_engine_never_takes_more_of_a_card_than_its_share(environment):
    with pytest.raises(
        ConfigurationError, match=r"gpu_memory_utilization: above the engine's share of a GPU, 0\.5"
    ):
        build(EnginesArgs(settings_file="engines.gpu.yaml", num_gpus=0.5))


def test_another_model_is_served_without_editing_a_file(environment, monkeypatch):
    monkeypatch.setenv("DAARION_MODEL", "Qwen/Qwen3-4B")
    named = read_environment()
    for file in ("engines.yaml", "engines.gpu.yaml"):
        local = load_engines(named, file).local_llm
        assert (local.model, local.served_name, template_text(local, named)) == (
            "Qwen/Qwen3-4B",
            "qwen3-4b",
            None,
        )
        assert local.engine.extra["default_chat_template_kwargs"] == {"enable_thinking": False}
        # 144 KiB a token, for one request of the longest kind
        assert (local.engine.kv_cache_mb or 1 << 20) * 1024 >= local.engine.max_model_len * 144
    graph = with_live_config(deploy_config(SERVE_FILES[0], named))
    llm = next(application for application in graph.applications if application.name == "llm")
    assert (
        LLMSettings.model_validate(llm.deployments[0].user_config).models["dagi-local-8b"].name
        == "qwen3-4b"
    )
    monkeypatch.setenv("DAARION_MODEL", "no-such-folder")
    missing = read_environment()
    with pytest.raises(ConfigurationError, match=r"^DAARION_MODEL: `no-such-folder` is neither"):
        model_source(load_engines(missing).local_llm, missing)


def test_the_engines_replica_is_offline_unless_its_model_comes_from_a_hub():
    assert process_variables(threads=2, cache="c", offline=True)["HF_HUB_OFFLINE"] == "1"
    assert process_variables(threads=None, cache="c", offline=False)["HF_HUB_OFFLINE"] == "0"
    assert "OMP_NUM_THREADS" not in process_variables(threads=None, cache="c", offline=False)


@pytest.mark.parametrize("eager", [True, False])
def test_an_engine_that_is_not_compiled_compiles_no_sampler_either(environment, eager):
    edited(environment, lambda it: it["engine"].update(enforce_eager=eager))
    local_llm, _ = build(
        EnginesArgs()
    )._bound_deployment.init_args  # the graph's own structure has no public reader
    variables = local_llm._bound_deployment.ray_actor_options["runtime_env"]["env_vars"]
    assert (variables.get("TORCH_COMPILE_DISABLE") == "1") is eager


def test_a_reload_carries_what_changes_in_place(environment):
    edited(environment, lambda it: it["default_sampling"].update(temperature=0.9))
    live = live_config({"settings_file": "engines.yaml"})["LocalLLM"]
    assert live["default_sampling"]["temperature"] == 0.9
    json.dumps(live)  # Serve wants JSON


def test_the_graph_process_merges_live_values_into_the_file(environment, tmp_path):
    file = tmp_path / "serve.yaml"
    content = yaml.safe_load(SERVE_FILES[0].read_text())
    content["applications"] = content["applications"][:1]
    file.write_text(yaml.safe_dump(content))
    config = with_live_config(deploy_config(file, environment))
    assert (config.http_options.host, config.http_options.port) == (
        environment.host,
        environment.port,
    )
    by_name = {deployment.name: deployment for deployment in config.applications[0].deployments}
    assert by_name["LocalLLM"].user_config["structured"]["max_items"] == 16
    assert by_name["LocalLLM"].max_ongoing_requests == 256


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("applications: [", "not valid YAML"),
        ("applications: 5", "applications"),
        ("[]", "serve.yaml"),
    ],
)
def test_a_wrong_serve_file_is_one_line(environment, tmp_path, text, says):
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        deploy_config(file, environment)
    assert says in caught.value.message
    assert "\n" not in caught.value.message


def test_the_reason_of_a_failed_deployment_is_its_last_line():
    trace = (
        'Traceback (most recent call last):\n  File "x.py", line 1\n'
        "contracts.errors.ConfigurationError: engines.yaml: a: b\n\n"
    )
    assert reason(trace) == "engines.yaml: a: b"
    assert reason("RuntimeError: no: really") == "RuntimeError: no: really"
    assert reason("") == "no reason was given"


def test_the_builder_and_its_callers_stay_light():
    program = (
        "import sys, deployments.engines.app, deployments.engines.clients; "
        "print({'vllm', 'torch', 'ray.llm'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert done.stdout.strip() == "set()"


def test_a_busy_port_is_named():
    alert = (
        "[ALERT] (1) : Binding [x.cfg:50] for frontend http: "
        "cannot bind socket (Address already in use) for [127.0.0.1:8000]\nExiting."
    )
    assert (
        reason(f"HAProxy crashed during startup: {alert}")
        == "127.0.0.1:8000: Address already in use"
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda app: app.update(import_path="deployments.no_such_app:build"),
            "import_path: there is no `deployments.no_such_app:build`",
        ),
        (
            lambda app: app.update(import_path="deployments.llm.app:biuld"),
            "import_path: there is no `deployments.llm.app:biuld`",
        ),
        (
            lambda app: app["args"].update(max_concurent=5),
            "args: max_concurent: Extra inputs are not permitted",
        ),
    ],
    ids=["no module", "no builder", "a typo in args"],
)
@pytest.mark.parametrize("application", ["llm", "workspace"], ids=["with live values", "without"])
def test_a_typo_in_the_serve_file_is_reported_and_changes_nothing(
    environment, tmp_path, change, expected, application
):
    content = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())
    change(next(app for app in content["applications"] if app["name"] == application))
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigurationError) as refused:
        with_live_config(deploy_config(file, environment))
    assert refused.value.message == f"application `{application}`: {expected}"


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_a_moved_module_in_the_operators_serve_file_is_reported_with_its_new_place(
    environment, tmp_path, old, new
):
    text = (REPOSITORY / "serve_config.yaml").read_text()
    assert f"import_path: {new}:build" in text
    file = tmp_path / "serve.yaml"
    file.write_text(text.replace(f"{new}:build", f"{old}:build"))
    with pytest.raises(ConfigurationError) as refused:
        with_live_config(deploy_config(file, environment))
    assert refused.value.message.endswith(f"import_path: `{old}` has moved: write `{new}:build`")


def test_an_unknown_kind_of_provider_is_reported_before_a_replica_sees_it(environment):
    file = environment.config_dir / "llm.yaml"
    file.write_text(file.read_text().replace("type: local", "type: wizard"))
    with pytest.raises(ConfigurationError, match=r"providers\.local\.type: no adapter `wizard`"):
        with_live_config(deploy_config(REPOSITORY / "serve_config.yaml", environment))


@pytest.mark.parametrize(
    ("file", "name"),
    [(SERVE_FILES[0], "smollm2-135m-instruct"), (SERVE_FILES[1], "qwen3-8b")],
    ids=["laptop", "gpu"],
)
def test_local_models_are_named_by_the_engine_that_serves_them(environment, file, name):
    config = with_live_config(deploy_config(file, environment))
    llm = next(application for application in config.applications if application.name == "llm")
    settings = LLMSettings.model_validate(llm.deployments[0].user_config)
    assert settings.models["dagi-local-8b"].name == name
    assert settings.models["gpt-4.1-mini"].name == "gpt-4.1-mini"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "{provider: local}",
            "{provider: local, name: qwen3-8b}",
            r"dagi-local-8b\.name: the local engine serves `smollm2-135m-instruct`",
        ),
        (
            "name: deepseek-r1, ",
            "",
            r"models\.deepseek-r1\.name: required: the name of the model at `deepseek`",
        ),
    ],
)
def test_a_model_that_nobody_serves_is_refused_before_a_replica_sees_it(
    environment, old, new, expected
):
    file = environment.config_dir / "llm.yaml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(ConfigurationError, match=expected):
        with_live_config(deploy_config(REPOSITORY / "serve_config.yaml", environment))
