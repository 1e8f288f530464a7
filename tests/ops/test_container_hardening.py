"""What the containers may do, and that the product works under it: checked without an engine."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launcher.cluster import programs
from launcher.postgres import _SETTINGS
from tests.support.launcher.confined import confined, environment

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
GPU = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text())
DOCKERFILE = (ROOT / "ops/image/Dockerfile").read_text()
SERVICES = COMPOSE["services"]
BY_DIGEST = re.compile(r"[a-z./]+:[\w.-]+@sha256:[0-9a-f]{64}")


def test_hadolint_accepts_the_dockerfile():
    command = [Path(sys.executable).with_name("hadolint"), "ops/image/Dockerfile"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")


def test_the_base_image_is_named_by_its_digest():
    (base,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert BY_DIGEST.fullmatch(base)
    parents = set(re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE))
    stages = {name for _, name in parents}
    assert {parent for parent, _ in parents} - stages == {"${PYTHON_IMAGE}"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_capabilities_a_read_only_root_and_bounds(name):
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert service["mem_limit"]
    assert service["pids_limit"] > 0


def test_stores_are_those_that_the_tests_use():
    image = SERVICES["postgres"]["image"]
    server = subprocess.check_output([programs() / "postgres", "--version"], text=True)
    major = re.search(r"\(PostgreSQL\) (\d+)", server)[1]
    control = programs().parent / "share/postgresql/extension/vector.control"
    vector = re.search(r"default_version = '([\d.]+)'", control.read_text())[1]
    assert image.startswith(f"pgvector/pgvector:{vector}-pg{major}@sha256:")
    assert BY_DIGEST.fullmatch(image)
    settings = re.findall(r"^(\w+)=(.+)$", "\n".join(SERVICES["postgres"]["command"]), re.MULTILINE)
    assert {name: _SETTINGS[name] for name, _ in settings} == dict(settings)
    nats = subprocess.check_output(
        [Path(sys.executable).with_name("nats-server"), "--version"], text=True
    )
    minor = re.search(r"v(\d+\.\d+)", nats)[1]
    assert SERVICES["nats"]["image"] == f"nats:{minor}-alpine"


@pytest.mark.skipif("os.geteuid() != 0", reason="only root can set up what a container has")
async def test_the_entrypoint_works_as_an_ordinary_user_on_a_read_only_root(postgres, tmp_path):
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    urls = await postgres.create_database("confined")
    script = (ROOT / "ops/image/entrypoint.sh").read_text()
    (data / "entrypoint.sh").write_text(script.replace("cd /app\n", "cd /opt\n"))
    rights = "id -u; touch /opt/x; touch /etc/x; grep -h -e ^Cap -e ^NoNew /proc/self/status"
    process = subprocess.Popen(
        confined(
            data,
            "sh",
            "/mnt/entrypoint.sh",
            "sh",
            "-c",
            f"{rights}; exec python -m launcher services",
        ),
        env=environment(DATABASE_URL=urls.service, DATABASE_OWNER_URL=urls.owner),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        lines = []
        while "serve run" not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
            lines.append(line.split())
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert errors.count("Read-only file system") == len(errors.splitlines()) == 2
    assert lines[0] == ["10001"]
    assert {value for name, value in lines[1:6]} == {"0" * 16}
    assert lines[6] == ["NoNewPrivs:", "1"]
    assert (data / "nats").stat().st_uid == 10001
