"""The GPU profile on one, two and four of Ray's logical GPUs; a real CPU engine behind one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from configs.environment import REPOSITORY
from contracts.errors import ConfigurationError
from deployments.graph.node_fit import fit, gpus_needed
from launcher.ports import free_ports

FILE = REPOSITORY / "configs" / "serve.gpu.yaml"
NODE = {"CPU": 16.0, "accelerator_type:T4": 1.0}


def gpu_config(change=lambda _args: None) -> ServeDeploySchema:
    content = yaml.safe_load(FILE.read_text())
    change(content["applications"][0]["args"])
    return ServeDeploySchema.model_validate(content)


def most(config: ServeDeploySchema) -> dict[str, int]:
    engines = {deployment.name: deployment for deployment in config.applications[0].deployments}
    return {
        name: engines[name].autoscaling_config["max_replicas"] for name in ("LocalLLM", "Embedder")
    }


@pytest.mark.parametrize(
    ("gpus", "engines", "embedders"),
    [(1, 1, 2), (2, 2, 4), (4, 4, 8), (8, 4, 8)],
    ids=["one", "two", "four", "eight"],
)
def test_the_profile_fits_on_any_number_of_gpus_of_any_type_and_grows_no_further(
    gpus, engines, embedders
):
    config = gpu_config()
    fit(config, {**NODE, "GPU": float(gpus)})
    assert most(config) == {"LocalLLM": engines, "Embedder": embedders}


def test_four_cores_are_enough_for_the_least_replicas():
    fit(gpu_config(), {"CPU": 4.0, "GPU": 1.0})


@pytest.mark.parametrize(
    ("change", "node", "expected"),
    [
        ({}, {"CPU": 16.0}, r"needs 1 GPU and this machine has none .*without GPU=1"),
        (
            {},
            {"CPU": 2.0, "GPU": 1.0},
            r"reserves 3\.\d CPUs and this machine has 2: lower num_cpus",
        ),
        (
            {"num_gpus": 1, "tensor_parallel_size": 2},
            {**NODE, "GPU": 2.0},
            r"needs 3 GPUs and this machine has 2: .*embedder_num_gpus",
        ),
        (
            {"accelerator_type": "L4"},
            {**NODE, "GPU": 1.0},
            r"accelerator_type names L4, this machine has T4: correct it",
        ),
    ],
    ids=["no GPU", "too few cores", "one GPU too few", "another type"],
)
def test_a_placement_that_does_not_fit_is_refused_with_the_setting_to_change(
    change, node, expected
):
    with pytest.raises(ConfigurationError, match=expected) as refused:
        fit(gpu_config(lambda args: args.update(change)), node)
    assert "\n" not in refused.value.message


def test_an_engine_on_two_whole_gpus_leaves_the_embedders_to_the_cpu():
    change = {"num_gpus": 1, "tensor_parallel_size": 2, "embedder_num_gpus": 0}
    config = gpu_config(lambda args: args.update(change))
    fit(config, {**NODE, "GPU": 2.0})
    assert most(config) == {"LocalLLM": 1, "Embedder": 8}


def test_shares_are_packed_into_whole_cards():
    assert gpus_needed([]) == 0
    assert gpus_needed([0.8, 0.1, 0.1]) == 1
    assert gpus_needed([0.8, 0.8]) == 2
    assert gpus_needed([0.8, 0.8, 0.3, 0.1]) == 3
    assert gpus_needed([0.1] * 10) == 1


def own_environment():
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DAARION_", "RAY_"))
    }


PLACED = """
import sys, ray
from ray.serve.schema import ServeDeploySchema
from ray.util.placement_group import placement_group
from deployments.engines.app import replica_bundles
from deployments.graph.node_fit import fit
import yaml

gpus = int(sys.argv[1])
ray.init(address="local", num_cpus=16, num_gpus=gpus, include_dashboard=False, log_to_driver=False)
config = ServeDeploySchema.model_validate(yaml.safe_load(open("configs/serve.gpu.yaml")))
fit(config, ray.cluster_resources())
engines = config.applications[0]
bundles = replica_bundles(engines.args)
groups = [
    placement_group(bundles[one.name], strategy="PACK")
    for one in engines.deployments
    if one.name in bundles
    for _ in range(one.autoscaling_config["max_replicas"])
]
placed = ray.wait([group.ready() for group in groups], num_returns=len(groups), timeout=30)[0]
print("placed", len(placed), "of", len(groups), "on", gpus)
"""


@pytest.mark.parametrize(("gpus", "replicas"), [(1, 3), (2, 6), (4, 12)])
def test_ray_places_as_many_replicas_as_were_found_to_fit(gpus, replicas):
    done = subprocess.run(
        [sys.executable, "-c", PLACED, str(gpus)],
        cwd=REPOSITORY,
        env=own_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"placed {replicas} of {replicas} on {gpus}" in done.stdout, done.stderr[-2_000:]


@pytest.mark.timeout(300)
def test_the_engine_comes_up_on_one_gpu_of_no_named_type(tmp_path):
    """The GPU profile's engines, with another model, on one logical GPU that an embedder shares."""
    content = yaml.safe_load(FILE.read_text())
    content["applications"] = content["applications"][:1]
    content["applications"][0]["args"]["settings_file"] = "engines.one.yaml"
    config = tmp_path / "configs"
    config.mkdir()
    embedder = content["applications"][0]["deployments"][2]
    embedder["autoscaling_config"]["min_replicas"] = 1  # a second one would only take time
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(content))
    engines = yaml.safe_load((REPOSITORY / "configs" / "engines.yaml").read_text())
    engines["local_llm"]["engine"]["gpu_memory_utilization"] = 0.8
    (config / "engines.one.yaml").write_text(yaml.safe_dump(engines))
    other = tmp_path / "Another-Model"
    models = Path(os.environ.get("DAARION_DATA_DIR") or REPOSITORY / ".data").absolute() / "models"
    other.symlink_to(models / "smollm2-135m-instruct")
    data = tmp_path / "data"
    data.mkdir()
    (data / "models").symlink_to(models)
    log = tmp_path / "serve.log"
    with log.open("w") as output:
        graph = subprocess.Popen(
            [sys.executable, "-m", "deployments.graph.serve_graph", str(file)],
            cwd=REPOSITORY,
            env={
                **own_environment(),
                "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": 8, "GPU": 1}),
                "DAARION_DATA_DIR": str(data),
                "DAARION_CONFIG_DIR": str(config),
                "DAARION_MODEL": str(other),
                "DAARION_SERVE_PROXY": "python",
                "DAARION_PORT": str(free_ports(1)[0]),
            },
            stdout=output,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        until = time.monotonic() + 240
        while (
            "all applications run" not in log.read_text()
            and graph.poll() is None
            and time.monotonic() < until
        ):
            time.sleep(0.5)
        assert "all applications run" in log.read_text(), log.read_text()[-2000:]
    finally:
        graph.send_signal(signal.SIGTERM)
        assert graph.wait(60) == 0
