"""Checks before the start: refusals, and stores' addresses without passwords."""

import os
import shutil
import socket

import pytest

from configs.environment import REPOSITORY, read_environment
from contracts.errors import ConfigurationError
from launcher import preflight
from launcher.__main__ import REFUSED, main
from launcher.console import address
from launcher.errors import StartRefused
from launcher.ports import free_ports
from launcher.preflight import check_settings


def refusal(check, *arguments) -> str:
    with pytest.raises(StartRefused) as refused:
        check(*arguments)
    assert "\n" not in refused.value.message
    return refused.value.message


def test_memory():
    preflight.check_memory(preflight.MEMORY_NEEDED)
    message = refusal(preflight.check_memory, preflight.MEMORY_NEEDED - (1 << 30))
    assert "5.0 GB of memory are available, the graph needs about 6.0 GB" in message


def test_disk(tmp_path):
    preflight.check_disk(preflight.DISK_NEEDED, tmp_path)
    assert "DAARION_DATA_DIR" in refusal(preflight.check_disk, 1 << 20, tmp_path)


def test_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = refusal(preflight.check_port, "127.0.0.1", port)
    assert f"port {port} on 127.0.0.1 is taken by pid {os.getpid()}" in message
    assert "DAARION_PORT" in message
    preflight.check_port("127.0.0.1", port)


def test_an_address_of_another_machine():
    assert "DAARION_HOST" in refusal(preflight.check_port, "203.0.113.7", 8000)


async def test_stores_elsewhere():
    [port] = free_ports(1)
    for check, url in (
        (preflight.check_database, f"postgresql://u:hidden@127.0.0.1:{port}/d"),
        (preflight.check_database, "no url at all"),
        (preflight.check_nats, f"nats://u:hidden@127.0.0.1:{port}"),
        (preflight.check_nats, "nats://:x"),
    ):
        with pytest.raises(StartRefused, match="is set, but no") as refused:
            await check(url)
        assert "hidden" not in refused.value.message


@pytest.mark.parametrize("host", ["192.168.1.5", "::1", "127.0.0.2", "example.org"])
def test_an_address_on_which_replicas_could_not_be_reached(host):
    assert "127.0.0.1 or localhost or 0.0.0.0 or ::" in refusal(preflight.check_port, host, 8000)


def test_a_library_of_the_system_that_is_missing():
    assert "apt install nothing0" in refusal(
        preflight.check_libraries, {"libnothing.so.0": "nothing0"}
    )


def test_memory_is_what_the_container_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "CGROUP", tmp_path)
    free = preflight.available_memory()
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert preflight.available_memory() > free / 2
    (tmp_path / "memory.max").write_text("5000\n")
    assert preflight.available_memory() == 4000


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:hidden@db:5432/daarion", "db:5432"),
        ("postgresql://u:hid,den@db/daarion", "db"),
        ("nats://u:hid,den@one:4222,nats://u:hidden@two:4222", "two:4222"),
        ("nats://one:4222", "one:4222"),
        ("host=db user=u password=hidden", "as configured"),
        ("postgresql://db/daarion?password=hid@den", "as configured"),
    ],
)
def test_a_store_is_shown_without_its_password(url, shown):
    assert address(url) == shown


@pytest.mark.parametrize("model", ["/no/such/folder", "no-such-folder", "{empty}"])
def test_a_model_that_is_nowhere_is_refused_before_anything_starts(tmp_path, model):
    model = model.format(empty=tmp_path)
    environment = read_environment(
        {"DAARION_DATA_DIR": str(tmp_path / "data"), "DAARION_MODEL": model}
    )
    with pytest.raises(ConfigurationError, match=f"^DAARION_MODEL: `{model}` is neither"):
        check_settings(environment)


def test_a_hub_id_is_left_to_the_engine(tmp_path):
    check_settings(
        read_environment({"DAARION_DATA_DIR": str(tmp_path), "DAARION_MODEL": "Qwen/Qwen3-4B"})
    )


@pytest.fixture
def bare_environment(monkeypatch, tmp_path):
    for name in ("DATABASE_URL", "NATS_URL", "DAARION_MODEL", "DAARION_HOST", "DAARION_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DAARION_DATA_DIR", str(tmp_path / "data"))
    return monkeypatch


def test_check_reads_every_file_and_asks_the_stores_but_starts_nothing(
    bare_environment, tmp_path, capsys
):
    assert main(["check"]) == 0
    assert "the files are right" in capsys.readouterr().out
    assert not (tmp_path / "data").exists()
    (port,) = free_ports(1)
    bare_environment.setenv("DATABASE_URL", f"postgresql://u:hidden@127.0.0.1:{port}/d")
    assert main(["check"]) == REFUSED
    shown = capsys.readouterr().out
    assert shown.startswith("refused: DATABASE_URL is set, but no login is possible there")
    assert "hidden" not in shown


def test_check_names_the_file_that_is_wrong(bare_environment, tmp_path, capsys):
    copy = shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    (copy / "tools.yaml").write_text("toolz: []\n")
    bare_environment.setenv("DAARION_CONFIG_DIR", str(copy))
    assert main(["check"]) == REFUSED
    assert "tools.yaml" in capsys.readouterr().out
