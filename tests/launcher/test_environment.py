import dataclasses
from pathlib import Path

import pytest

from configs.environment import read_environment
from launcher.instance import MARKER, Instance, leftover
from launcher.serve import serve_environment

INSTANCE = Instance(
    identity="f" * 32,
    directory=Path("/tmp/daarion-abcdefgh"),
    stats_port=41001,
    metrics_port=41002,
    fallback_http_port=41003,
    fallback_grpc_port=41004,
    http_ports=(30100, 30199),
    grpc_ports=(28100, 28199),
)


def assemble(nats_url="nats://n", cpus=2, **variables):
    environment = read_environment({"DAARION_DATA_DIR": "data", "PATH": "/bin", **variables})
    return serve_environment(
        environment, INSTANCE, database_url="postgresql://service", nats_url=nats_url, cpus=cpus
    )


def test_stores_and_absolute_paths():
    env = assemble(DAARION_PORT="8123", DATABASE_URL="postgresql://somebody-else")
    assert env["DATABASE_URL"] == "postgresql://service"
    assert env["NATS_URL"] == "nats://n"
    assert env["DAARION_DATA_DIR"] == str(Path("data").absolute())
    assert Path(env["DAARION_CONFIG_DIR"]).is_absolute()
    assert env["DAARION_PORT"] == "8123"
    assert env["PATH"] == "/bin"


def test_without_nats_there_is_no_url():
    assert "NATS_URL" not in assemble(nats_url=None)


def test_hub_access_and_usage_statistics_are_off_by_default():
    env = assemble()
    assert (env["HF_HUB_OFFLINE"], env["RAY_USAGE_STATS_ENABLED"], env["DO_NOT_TRACK"]) == (
        "1",
        "0",
        "1",
    )
    assert (env["VLLM_NO_USAGE_STATS"], env["VLLM_DO_NOT_TRACK"]) == ("1", "1")


@pytest.mark.parametrize(
    ("name", "value"),
    [("HF_HUB_OFFLINE", "0"), ("OMP_NUM_THREADS", "7"), ("RAY_SERVE_HAPROXY_NBTHREAD", "9")],
)
def test_the_operator_wins_over_a_default(name, value):
    assert assemble(**{name: value})[name] == value


@pytest.mark.parametrize(
    "name",
    [
        "RAY_SERVE_HAPROXY_SOCKET_PATH",
        "DAARION_RAY_TEMP_DIR",
        MARKER,
        "RAY_SERVE_HAPROXY_STATS_PORT",
    ],
)
def test_variables_that_separate_instances_override_the_operators(name):
    assert assemble(**{name: "another"})[name] != "another"


def test_someone_elses_cluster_is_not_joined():
    assert "RAY_ADDRESS" not in assemble(RAY_ADDRESS="10.0.0.1:6379")


@pytest.mark.parametrize(("cpus", "threads"), [(1, "1"), (2, "2"), (64, "4")])
def test_math_threads_are_capped(cpus, threads):
    assert assemble(cpus=cpus)["OMP_NUM_THREADS"] == threads


def test_haproxy_is_the_default_and_the_fallback_leaves_it_out():
    switches = {"RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED"}
    assert switches <= set(assemble())
    assert not switches & set(assemble(DAARION_SERVE_PROXY="python"))


def test_ranges_of_ports():
    env = assemble()
    bounds = {
        name: env[f"RAY_SERVE_DIRECT_INGRESS_{name}_PORT"]
        for name in ("MIN_HTTP", "MAX_HTTP", "MIN_GRPC", "MAX_GRPC")
    }
    assert bounds == {
        "MIN_HTTP": "30100",
        "MAX_HTTP": "30199",
        "MIN_GRPC": "28100",
        "MAX_GRPC": "28199",
    }
    assert (env["RAY_SERVE_HAPROXY_STATS_PORT"], env["RAY_SERVE_HAPROXY_METRICS_PORT"]) == (
        "41001",
        "41002",
    )
    assert (
        env["RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"],
        env["RAY_SERVE_FALLBACK_PROXY_GRPC_PORT"],
    ) == ("41003", "41004")


def test_every_socket_path_fits_with_what_ray_and_haproxy_add():
    env = assemble()
    node, suffix = "f" * 56, ".4194304.tmp"
    for name in ("SOCKET_PATH", "METRICS_SOCKET_PATH"):
        path = Path(env[f"RAY_SERVE_HAPROXY_{name}"])
        assert len(f"{path.parent}/{node}/{path.name}{suffix}") <= 107
    session = "session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1"
    assert len(f"{env['DAARION_RAY_TEMP_DIR']}/{session}") <= 107


def test_two_instances_share_no_port_or_folder(tmp_path):
    one, two = Instance.create(), Instance.create()
    try:
        assert one.directory != two.directory
        assert one.identity != two.identity
        assert len({one.stats_port, one.metrics_port, two.stats_port, two.metrics_port}) == 4
        assert one.directory.stat().st_mode & 0o777 == 0o700
        assert len(str(one.directory)) == len(str(INSTANCE.directory))
        one.save(tmp_path / "instance.json")
        found = leftover(tmp_path / "instance.json")
        assert (found.identity, found.directory) == (one.identity, one.directory)
    finally:
        one.remove()
        two.remove()
    assert not one.directory.exists()


def test_only_an_instances_own_directory_is_removed(tmp_path):
    for path in (tmp_path, tmp_path / "daarion-x"):
        path.mkdir(exist_ok=True)
        dataclasses.replace(INSTANCE, directory=path).remove()
        assert path.exists()


@pytest.mark.parametrize("content", ["", "[]", '{"identity": "x"}', "\x00"])
def test_a_broken_instance_file_names_no_leftover(tmp_path, content):
    (tmp_path / "instance.json").write_text(content)
    assert leftover(tmp_path / "instance.json") is None
