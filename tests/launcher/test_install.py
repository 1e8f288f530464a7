import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launcher.install import (
    PYTHON,
    Installer,
    InstallFailed,
    InstallRefused,
    main,
    run_step,
    users_of,
)

PYPROJECT = (
    '[project]\nname = "x"\nversion = "1"\n[tool.setuptools.packages.find]\ninclude = ["a*"]\n'
)


@pytest.fixture
def repository(tmp_path) -> Path:
    (tmp_path / "ops/locks").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    write(
        tmp_path,
        cpu=["torch===2.0.0+cpu", "ray==1"],
        general=["torch===2.0.0", "ray==1", "cuda==1"],
        dev=["pytest==8"],
        gpu=["torch===2.0.0", "vllm==3"],
    )
    return tmp_path


def write(repository: Path, **locks: list[str]) -> None:
    for name, lines in locks.items():
        entries = [f"{line} \\\n    --hash=sha256:{'0' * 64}\n" for line in lines]
        (repository / f"ops/locks/{name}-{PYTHON}.lock").write_text("".join(entries))


def ensure(
    repository: Path,
    profile: str,
    fail: str = "",
    *,
    project: bool = True,
    torch: str = "2.1.0, 2.0.0+cpu, 2.0.0",
) -> list[str]:
    """Runs one installation with recorded commands; returns their titles.

    pip finds the versions `torch`, or no index where that is empty.
    """
    done: list[str] = []

    def step(title: str, argv: list[str], cwd: Path) -> None:
        assert cwd == repository
        done.append(title)
        if fail and fail in title:
            raise InstallFailed(title)
        if argv[1:3] == ["-m", "venv"]:
            make_environment(repository, torch)

    Installer(repository, step).ensure(profile, project=project)
    return done


def make_environment(repository: Path, torch: str) -> None:
    """Makes the files of `python -m venv`; its python answers `pip index versions torch`."""
    venv = repository / ".venv"
    for stamp in venv.glob(".*"):
        stamp.unlink()
    (venv / "bin").mkdir(parents=True, exist_ok=True)
    (venv / "bin/python").unlink(missing_ok=True)  # it may be a link to a real Python
    answer = f"echo 'Available versions: {torch}'" if torch else "echo no route >&2; exit 1"
    (venv / "bin/python").write_text(f"#!/bin/sh\n{answer}\n")
    (venv / "bin/python").chmod(0o755)
    pip = venv / f"lib/python{PYTHON}/site-packages/pip"
    pip.mkdir(parents=True, exist_ok=True)
    (pip / "__main__.py").touch()


FRESH = [
    "creating .venv",
    f"installing 2 packages from ops/locks/cpu-{PYTHON}.lock",
    "installing this repository into it",
]
TOOLS = f"installing 1 packages from ops/locks/dev-{PYTHON}.lock"


def test_a_second_start_installs_nothing(repository):
    assert ensure(repository, "cpu") == FRESH
    assert ensure(repository, "cpu") == []


def test_packages_may_be_installed_before_the_repository_is_there(repository):
    (repository / "pyproject.toml").unlink()
    assert ensure(repository, "cpu", project=False) == FRESH[:2]
    assert ensure(repository, "cpu", project=False) == []
    (repository / "pyproject.toml").write_text(PYPROJECT)
    assert ensure(repository, "cpu") == FRESH[2:]


def test_dev_is_cpu_and_the_tools(repository):
    assert ensure(repository, "dev") == [*FRESH[:2], TOOLS, FRESH[2]]
    assert ensure(repository, "cpu") == []
    assert ensure(repository, "dev") == []


def test_the_tools_join_an_environment_that_has_the_product(repository):
    ensure(repository, "cpu")
    assert ensure(repository, "dev") == [TOOLS]


def test_a_changed_product_leaves_the_tools(repository):
    ensure(repository, "dev")
    write(repository, cpu=["torch===2.0.0+cpu", "ray==2"])
    assert ensure(repository, "dev") == FRESH[1:2]


def test_without_a_cpu_build_of_torch_the_general_one_is_taken_and_kept(repository, capsys):
    titles = ensure(repository, "cpu", torch="2.1.0+cpu, 2.1.0, 2.0.0")
    assert titles == [FRESH[0], FRESH[1].replace("2", "3", 1).replace("cpu-", "general-"), FRESH[2]]
    assert "pip finds no CPU build of torch" in capsys.readouterr().out
    assert ensure(repository, "cpu", torch="2.0.0+cpu") == []


def test_without_an_index_nothing_is_chosen(repository):
    with pytest.raises(InstallFailed, match="no torch:\nno route"):
        ensure(repository, "cpu", torch="")


def test_a_python_without_locks_is_refused(repository):
    for file in (repository / "ops/locks").iterdir():
        file.unlink()
    with pytest.raises(InstallRefused, match=rf"no lock files for Python {PYTHON}"):
        ensure(repository, "cpu")


def test_an_environment_of_another_python_is_made_anew(repository):
    ensure(repository, "cpu")
    library = repository / ".venv/lib"
    (library / f"python{PYTHON}").rename(library / "python3.9")
    assert ensure(repository, "cpu") == FRESH


def test_a_changed_lock_file_is_installed_again(repository):
    ensure(repository, "cpu")
    write(repository, cpu=["torch===2.0.0+cpu", "ray==2"])
    assert ensure(repository, "cpu") == FRESH[1:2]


def test_going_back_to_an_older_lock_file_installs_again(repository):
    ensure(repository, "cpu")
    write(repository, cpu=["torch===2.0.0+cpu", "ray==2"])
    ensure(repository, "cpu")
    write(repository, cpu=["torch===2.0.0+cpu", "ray==1"])
    assert ensure(repository, "cpu") == FRESH[1:2]


def test_an_interrupted_installation_is_taken_up_again(repository):
    with pytest.raises(InstallFailed):
        ensure(repository, "cpu", fail="cpu-")
    assert ensure(repository, "cpu") == FRESH[1:]


def test_an_environment_whose_making_was_interrupted_is_made_anew(repository):
    ensure(repository, "cpu")
    (
        repository / f".venv/lib/python{PYTHON}/site-packages/pip/__main__.py"
    ).unlink()  # the stamp is written last
    assert ensure(repository, "dev")[0] == "creating .venv"


def test_an_environment_without_its_python_is_made_anew(repository):
    ensure(repository, "cpu")
    (repository / ".venv/bin/python").unlink()
    assert ensure(repository, "cpu") == FRESH


def test_the_gpu_set_never_mixes_with_the_cpu_set(repository):
    ensure(repository, "cpu")
    titles = ensure(repository, "gpu")
    assert titles[0] == "creating .venv (it held the other set of packages)"
    assert titles[1].endswith(f"ops/locks/gpu-{PYTHON}.lock")
    assert ensure(repository, "gpu") == []
    assert ensure(repository, "dev")[0].startswith("creating .venv (it held")


def test_only_what_concerns_the_package_installs_it_again(repository):
    ensure(repository, "cpu")
    (repository / "pyproject.toml").write_text(PYPROJECT + "[tool.ruff]\nline-length = 1\n")
    assert ensure(repository, "cpu") == []
    (repository / "pyproject.toml").write_text(PYPROJECT.replace('"a*"', '"b*"'))
    assert ensure(repository, "cpu") == FRESH[2:]


def test_a_failed_step_is_reported(tmp_path, capfd):
    run_step("doing well", ["true"], tmp_path)
    with pytest.raises(InstallFailed, match="doing badly failed with status 1"):
        run_step("doing badly", ["false"], tmp_path)
    assert capfd.readouterr().out.startswith("doing well …\n  done in 0 s\n")


def test_an_unknown_profile_is_reported(capsys):
    assert main(["tpu"]) == 2
    assert "cpu|dev|gpu" in capsys.readouterr().out


def test_one_installation_at_a_time(repository, capsys):
    """The second one finds what the first one did, and installs nothing."""
    first_began, titles = threading.Event(), []

    def step(title: str, argv: list[str], cwd: Path) -> None:
        first_began.set()
        waiting.wait(30)
        if argv[1:3] == ["-m", "venv"]:
            make_environment(repository, "2.0.0+cpu")

    waiting = threading.Event()
    first = threading.Thread(target=Installer(repository, step).ensure, args=["cpu"])
    second = threading.Thread(target=lambda: titles.extend(ensure(repository, "cpu")))
    first.start()
    assert first_began.wait(30)
    second.start()
    said = ""
    while "waiting for another installation" not in said:
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
    """`make` looks for the stamp of a finished installation: a Python alone cannot import."""
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
