"""What is refused before anything is started, and what a store's address shows."""

import pytest

from configs.environment import read_environment
from contracts.errors import ConfigurationError
from launcher import preflight
from launcher.errors import StartRefused
from launcher.settings import check_settings
from launcher.store_set import _address


def refusal(check, *arguments):
    with pytest.raises(StartRefused) as refused:
        check(*arguments)
    return refused.value.message


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
    assert _address(url) == shown


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
