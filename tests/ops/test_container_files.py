"""The container files, checked without a container engine: names, settings, published ports."""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from configs.environment import read_environment
from contracts.errors import ConfigurationError
from launcher.install import PYTHON

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
GPU = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text())
SERVICES = COMPOSE["services"]
VALUE = re.compile(r"\$\{([A-Z_]+)(?::([-?])([^}]*))?\}")


def test_the_compose_files_satisfy_the_compose_specification():
    files = ["docker-compose.yml", "docker-compose.gpu.yml"]
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        *files,
    ]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def dockerfile():
    """Returns (instruction, rest) pairs, continued lines joined."""
    text = re.sub(r"\\\n", " ", (ROOT / "ops/image/Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(re.split(r"\s+", line.strip(), maxsplit=1)) for line in lines]


def stages():
    """Returns each stage's name with its parent and instructions."""
    found = {}
    for instruction, rest in dockerfile():
        if instruction == "FROM":
            parent, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()
            found[name] = (parent, [])
        elif found:
            found[name][1].append((instruction, rest))
    return found


def lineage(name):
    """Returns a stage's instructions with those of its parents, oldest first."""
    parent, own = stages()[name]
    return (lineage(parent) if parent in stages() else []) + own


def in_context(path):
    """Whether `.dockerignore` lets a path into the context: the last matching pattern decides."""
    shown = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        parts = [path, *(str(parent) for parent in Path(path).parents)]
        fits = any(
            fnmatch.fnmatch(part, pattern.removeprefix("**/")) or fnmatch.fnmatch(part, pattern)
            for part in parts
        )
        if fits or (
            pattern.startswith("**/")
            and any(fnmatch.fnmatch(part, pattern[3:]) for part in Path(path).parts)
        ):
            shown = line.startswith("!")
    return shown


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_an_image_runs_as_an_ordinary_user_with_its_entry_and_health_check(target):
    instructions = lineage(target)
    users = [rest for instruction, rest in instructions if instruction == "USER"]
    assert users[-1] == "10001:10001"
    assert [rest for instruction, rest in instructions if instruction == "ENTRYPOINT"] == [
        '["/app/ops/image/entrypoint.sh"]'
    ]
    assert any(instruction == "HEALTHCHECK" for instruction, _ in instructions)
    settings = " ".join(rest for instruction, rest in instructions if instruction == "ENV")
    (profile,) = re.findall(r"DAARION_SERVE_CONFIG=/app/(\S+)", settings)
    assert (ROOT / profile).is_file()
    assert in_context(profile)
    assert f"launcher.install {target}" in " ".join(
        rest for instruction, rest in instructions if instruction == "RUN"
    )
    assert instructions[-1] == ("VOLUME", "/data")


def test_copied_files_exist_and_are_in_the_build_context():
    for name, (_, instructions) in stages().items():
        for instruction, rest in instructions:
            if instruction != "COPY" or rest.startswith("--from="):
                continue
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), (name, source)
                assert source == "." or in_context(source.rstrip("/")), (name, source)


def test_packages_come_before_the_repository_so_that_their_layer_is_kept():
    for target in ("cpu", "gpu"):
        _, instructions = stages()[f"{target}-packages"]
        copied = [rest for instruction, rest in instructions if instruction == "COPY"]
        assert copied == [
            "ops/locks/ ops/locks/",
            "launcher/__init__.py launcher/install.py launcher/",
        ]
        assert f"python -m launcher.install {target} --packages-only" in instructions[-1][1]


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_the_packages_layer_needs_nothing_but_what_is_copied(target, tmp_path):
    for source in ("ops/locks", "launcher/__init__.py", "launcher/install.py"):
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        (tmp_path / source).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / source, tmp_path / source)
    recorded = (
        "import sys, launcher.install as install\n"
        "def step(title, argv, cwd):\n"
        "    print(cwd, *argv)\n"
        "    (cwd / '.venv/bin').mkdir(parents=True, exist_ok=True)\n"
        "    python = cwd / '.venv/bin/python'\n"
        "    python.exists() or python.symlink_to(sys.executable)\n"
        "install.Installer._engine_lock = lambda self: 'cpu'\n"
        "install.Installer(step=step).ensure(sys.argv[1], project=False)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", recorded, target],
        cwd=tmp_path,
        env={},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"{tmp_path} {tmp_path}/.venv/bin/python -m pip install")
    assert last.endswith(f"--requirement {tmp_path}/ops/locks/{target}-{PYTHON}.lock")


def test_the_context_has_every_package_and_nothing_private():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]:
        assert in_context(pattern.rstrip("*")), pattern
    for needed in (
        "README.md",
        "pyproject.toml",
        "backends/postgres/migrations/0001_llm_usage.sql",
        "configs/llm.yaml",
        "ops/image/entrypoint.sh",
    ):
        assert in_context(needed)
    for private in (
        ".env",
        ".data/secrets/postgres_owner",
        ".git/config",
        ".venv/bin/python",
        "tests/ingress/test_errors.py",
        "backends/__pycache__",
    ):
        assert not in_context(private), private


def test_only_the_ingress_is_published_and_on_loopback_by_default():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published.pop("grafana") == ["127.0.0.1:3000:3000"]
    assert list(published) == ["graph"]
    assert SERVICES["graph"]["ports"] == ["${DAARION_PUBLISH:-127.0.0.1:8000}:8000"]
    assert list(COMPOSE["networks"]) == ["daarion"]
    inside = {name for name, service in SERVICES.items() if service.get("networks") == ["daarion"]}
    assert inside == SERVICES.keys() - {"prometheus"}
    assert SERVICES["prometheus"]["network_mode"] == "service:graph"


def test_every_service_has_a_health_check_and_starts_after_what_it_needs():
    assert all(service["healthcheck"]["test"][0] == "CMD" for service in SERVICES.values())
    assert SERVICES["graph"]["depends_on"] == {
        name: {"condition": "service_healthy"} for name in ("postgres", "nats")
    }
    used = {
        volume.partition(":")[0] for service in SERVICES.values() for volume in service["volumes"]
    }
    named = {volume for volume in used if not volume.startswith(".")}
    assert named == set(COMPOSE["volumes"])
    assert all((ROOT / volume).exists() for volume in used - named)
    assert GPU["services"]["graph"]["build"]["target"] in stages()
    assert SERVICES["graph"]["build"]["target"] in stages()


def test_no_secret_has_a_default_and_the_example_names_them_all():
    text = (ROOT / "docker-compose.yml").read_text()
    demanded = {name for name, kind, _ in VALUE.findall(text) if kind == "?"}
    optional = {name for name, kind, _ in VALUE.findall(text) if kind == "-"}
    roles = {f"DAARION_{role}_PASSWORD" for role in ("OWNER", "SERVICE")}
    assert demanded == roles | {
        "DAARION_INTERNAL_SECRET",
        "DAARION_ADMIN_SECRET",
        "POSTGRES_PASSWORD",
        "NATS_PASSWORD",
        "NATS_ROUTER_PASSWORD",
    }
    assert optional == {
        "DAARION_ALLOWED_HOSTS",
        "DAARION_MEMORY",
        "DAARION_MODEL",
        "DAARION_PUBLISH",
        "OPENAI_API_KEY",
        "DEEPSEEK_API_KEY",
        "GRAFANA_PASSWORD",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_HEADERS",
        "OTEL_TRACES_SAMPLER",
        "OTEL_TRACES_SAMPLER_ARG",
        "OTEL_SERVICE_NAME",
        "OTEL_RESOURCE_ATTRIBUTES",
    }
    lines = [
        line
        for line in (ROOT / "ops/compose/env.example").read_text().splitlines()
        if "=" in line and not line.startswith("# ")
    ]
    assert {line.removesuffix("=") for line in lines if line[0] != "#"} == demanded
    assert {line[1:].partition("=")[0] for line in lines if line[0] == "#"} == optional


def test_the_graphs_environment_is_taken_as_it_is_and_refused_without_its_secret():
    given = {
        name: VALUE.sub("x" * 16, value) for name, value in SERVICES["graph"]["environment"].items()
    }
    environment = read_environment(given)
    assert (environment.host, environment.port, environment.ingress_url) == (
        "0.0.0.0",
        8000,
        "http://127.0.0.1:8000",
    )
    assert (
        environment.database_url
        == "postgresql://daarion_service:xxxxxxxxxxxxxxxx@postgres:5432/daarion"
    )
    assert environment.has_secret
    with pytest.raises(ConfigurationError):
        read_environment({**given, "DAARION_INTERNAL_SECRET": "", "DAARION_ADMIN_SECRET": ""})
    assert "at least 16" in (ROOT / "ops/compose/env.example").read_text()
    for name in ("DAARION_INTERNAL_SECRET", "DAARION_ADMIN_SECRET"):
        with pytest.raises(ConfigurationError, match=f"{name} has less than 16 characters"):
            read_environment({**given, name: "x" * 15})


@pytest.fixture
def container(tmp_path):
    """The entrypoint with stand-ins for `/app` and `python` that record their calls."""
    script = (ROOT / "ops/image/entrypoint.sh").read_text()
    assert "cd /app\n" in script
    entry = tmp_path / "entrypoint.sh"
    entry.write_text(script.replace("cd /app\n", f"cd {tmp_path}\n"))
    (tmp_path / "python").write_text(
        '#!/bin/sh\necho "python $* url=${DATABASE_URL:-none}"\ntest "$2" != "${FAIL:-}"\n'
    )
    (tmp_path / "python").chmod(0o755)

    def run(*arguments, **variables):
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "DAARION_DATA_DIR": "/data",
            "DAARION_SERVE_CONFIG": "/app/x.yaml",
            **variables,
        }
        return subprocess.run(
            ["sh", entry, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    return run


def test_the_entrypoint_builds_the_models_and_becomes_the_launcher(container, tmp_path):
    (tmp_path / "url").write_text("postgresql://from-a-file\n")
    done = container(DATABASE_URL_FILE=str(tmp_path / "url"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "python -m modelbuild --data-dir /data url=postgresql://from-a-file",
        "python -m launcher run --config /app/x.yaml url=postgresql://from-a-file",
    ]
    assert (
        container("python", "-m", "backends.postgres.migrate").stdout
        == "python -m backends.postgres.migrate url=none\n"
    )
    assert container(DATABASE_URL_FILE="/nowhere").returncode != 0


def test_without_models_nothing_is_started(container):
    done = container(FAIL="modelbuild")
    assert done.returncode != 0
    assert "launcher" not in done.stdout


@pytest.mark.parametrize(("status", "expected"), [(200, 0), (503, 1)])
def test_the_health_check_asks_the_graph(status, expected):
    class Health(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {"PATH": os.environ["PATH"], "DAARION_PORT": str(server.server_port)}
        done = subprocess.run(
            [ROOT / "ops/image/healthcheck.sh"], env=environment, timeout=30, check=False
        )
        server.shutdown()
    assert done.returncode == expected
    gone = subprocess.run(
        [ROOT / "ops/image/healthcheck.sh"], env=environment, timeout=30, check=False
    )
    assert gone.returncode == 1


def test_scripts_can_be_executed_and_parsed():
    for script in (ROOT / "ops").rglob("*.sh"):
        assert os.access(script, os.X_OK), script
        subprocess.run([shutil.which("sh"), "-n", script], check=True, timeout=30)
