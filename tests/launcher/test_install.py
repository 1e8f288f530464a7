import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launcher.install import Installer, InstallFailed, InstallRefused, main, run_step, users_of

PYPROJECT = (
    '[project]\nname = "x"\nversion = "1"\n[tool.setuptools.packages.find]\ninclude = ["a*"]\n'
)


@pytest.fixture
def repository(tmp_path) -> Path:
    (tmp_path / "requirements").mkdir()
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    write(
        tmp_path,
        cpu=["torch==2.0.0", "ray==1"],
        dev=["torch==2.0.0", "ray==1", "pytest==8"],
        gpu=["torch==2.0.0", "vllm==3"],
    )
    return tmp_path


def write(repository: Path, **locks: list[str]) -> None:
    for name, lines in locks.items():
        (repository / f"requirements/{name}.lock").write_text(
            "# a comment\n" + "\n".join(lines) + "\n"
        )


def ensure(repository: Path, profile: str, fail: str = "", *, project: bool = True) -> list[str]:
    """Runs one installation with commands that are recorded instead of executed; returns their titles' first words."""
    done: list[str] = []

    def step(title: str, argv: list[str], cwd: Path) -> None:
        assert cwd == repository
        done.append(title)
        if fail and fail in title:
            raise InstallFailed(title)
        if argv[1:3] == ["-m", "venv"]:
            if (repository / ".venv").exists():
                for path in (repository / ".venv").glob(".*"):
                    path.unlink()
            (repository / ".venv/bin").mkdir(parents=True, exist_ok=True)
            (repository / ".venv/bin/python").unlink(missing_ok=True)  # it may link to a real one
            (repository / ".venv/bin/python").write_text("#!/bin/sh\n")
            (repository / ".venv/bin/python").chmod(0o755)
            pip = repository / ".venv/lib/python3.11/site-packages/pip"
            pip.mkdir(parents=True, exist_ok=True)
            (pip / "__main__.py").touch()

    Installer(repository, step).ensure(profile, project=project)
    return done


FRESH = [
    "creating .venv",
    "installing torch 2.0.0, the largest package",
    "installing 2 packages from requirements/cpu.lock",
    "installing this repository into it",
]


def test_a_second_start_installs_nothing(repository):
    assert ensure(repository, "cpu") == FRESH
    assert ensure(repository, "cpu") == []


def test_packages_may_be_installed_before_the_repository_is_there(repository):
    (repository / "pyproject.toml").unlink()
    assert ensure(repository, "cpu", project=False) == FRESH[:3]
    assert ensure(repository, "cpu", project=False) == []
    (repository / "pyproject.toml").write_text(PYPROJECT)
    assert ensure(repository, "cpu") == FRESH[3:]


def test_dev_contains_cpu(repository):
    ensure(repository, "dev")
    assert ensure(repository, "cpu") == []
    assert ensure(repository, "dev") == []


def test_dev_that_does_not_contain_cpu_does_not_count_for_it(repository):
    write(repository, cpu=["torch==2.0.0", "ray==2"])
    ensure(repository, "dev")
    assert any("cpu.lock" in title for title in ensure(repository, "cpu"))


def test_a_changed_lock_file_is_installed_again(repository):
    ensure(repository, "cpu")
    write(repository, cpu=["torch==2.0.0", "ray==2"])
    assert ensure(repository, "cpu") == FRESH[1:3]


def test_going_back_to_an_older_lock_file_installs_again(repository):
    ensure(repository, "cpu")
    write(repository, cpu=["torch==2.0.0", "ray==2"])
    ensure(repository, "cpu")
    write(repository, cpu=["torch==2.0.0", "ray==1"])
    assert ensure(repository, "cpu") == FRESH[1:3]


def test_an_interrupted_installation_is_taken_up_again(repository):
    with pytest.raises(InstallFailed):
        ensure(repository, "cpu", fail="cpu.lock")
    assert ensure(repository, "cpu") == FRESH[1:]


def test_an_environment_whose_making_was_interrupted_is_made_anew(repository):
    ensure(repository, "cpu")
    (repository / ".venv/lib/python3.11/site-packages/pip/__main__.py").unlink()  # it comes last
    assert ensure(repository, "dev")[0] == "creating .venv"


def test_an_environment_without_its_python_is_made_anew(repository):
    ensure(repository, "cpu")
    (repository / ".venv/bin/python").unlink()
    assert ensure(repository, "cpu") == FRESH


def test_the_gpu_set_never_mixes_with_the_cpu_set(repository):
    ensure(repository, "cpu")
    titles = ensure(repository, "gpu")
    assert titles[0] == "creating .venv (it held the other set of packages)"
    assert not any("torch" in title for title in titles)
    assert ensure(repository, "gpu") == []
    assert ensure(repository, "dev")[0].startswith("creating .venv (it held")


def test_only_what_concerns_the_package_installs_it_again(repository):
    ensure(repository, "cpu")
    (repository / "pyproject.toml").write_text(PYPROJECT + "[tool.ruff]\nline-length = 1\n")
    assert ensure(repository, "cpu") == []
    (repository / "pyproject.toml").write_text(PYPROJECT.replace('"a*"', '"b*"'))
    assert ensure(repository, "cpu") == FRESH[3:]


def test_a_step_that_fails_is_told(tmp_path, capfd):
    run_step("doing well", ["true"], tmp_path)
    with pytest.raises(InstallFailed, match="doing badly failed with status 1"):
        run_step("doing badly", ["false"], tmp_path)
    assert capfd.readouterr().out.startswith("doing well …\n  done in 0 s\n")


def test_an_unknown_profile_is_told(capsys):
    assert main(["tpu"]) == 2
    assert "cpu|dev|gpu" in capsys.readouterr().out


def test_one_installation_at_a_time(repository, capsys):
    """The second one finds what the first one did, and installs nothing."""
    first_began, titles = threading.Event(), []

    def step(title: str, argv: list[str], cwd: Path) -> None:
        first_began.set()
        waiting.wait(30)
        if argv[1:3] == ["-m", "venv"]:
            (repository / ".venv/bin").mkdir(parents=True)
            (repository / ".venv/bin/python").write_text("#!/bin/sh\n")
            (repository / ".venv/bin/python").chmod(0o755)

    waiting = threading.Event()
    first = threading.Thread(target=Installer(repository, step).ensure, args=["cpu"])
    second = threading.Thread(target=lambda: titles.extend(ensure(repository, "cpu")))
    first.start()
    assert first_began.wait(30)
    second.start()
    said = ""
    while "another installation is at work" not in said:
        said += capsys.readouterr().out
        time.sleep(0.01)
    waiting.set()
    first.join(30)
    second.join(30)
    assert (titles, first.is_alive(), second.is_alive()) == ([], False, False)


def test_an_environment_in_use_is_not_emptied(repository):
    ensure(repository, "cpu")
    python = repository / ".venv/bin/python"
    python.unlink()
    python.symlink_to(sys.executable)
    argv = [".venv/bin/python", "-c", "print(input())"]
    with subprocess.Popen(
        argv, cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as graph:
        assert wait_until(lambda: users_of(python) == [graph.pid])
        with pytest.raises(InstallRefused, match=rf"a graph runs from .* \(pid {graph.pid}\)"):
            ensure(repository, "gpu")
        assert ensure(repository, "cpu") == []
        graph.communicate(b"end\n")
    python.unlink()
    assert ensure(repository, "gpu")[0].startswith("creating .venv")


def wait_until(condition, timeout_s: float = 30.0) -> bool:
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("command", ["status", "reload"])
def test_while_the_first_installation_is_at_work_the_commands_say_so(tmp_path, command):
    """`make` looks for the stamp of a finished installation: a Python alone cannot import anything yet."""
    shutil.copy(Path(__file__).parents[2] / "Makefile", tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to(sys.executable)
    done = make(tmp_path, command)
    assert (
        done.stdout == "nothing is installed yet, so nothing is running: start it with make run\n"
    )
    assert done.returncode != 0


def test_an_environment_that_is_being_filled_is_not_removed(tmp_path):
    shutil.copy(Path(__file__).parents[2] / "Makefile", tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    with Installer(tmp_path)._alone():
        done = make(tmp_path, "clean")
        assert "an installation into .venv is at work" in done.stdout
        assert done.returncode != 0
        assert (tmp_path / ".venv/bin").exists()
    assert make(tmp_path, "clean").returncode == 0
    assert not (tmp_path / ".venv").exists()


def make(folder: Path, target: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["make", "--no-print-directory", target],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
