"""A launcher process over a data directory, as an operator sees it."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import psycopg

from launcher.ports import free_ports

REPOSITORY = Path(__file__).resolve().parents[3]
DRIVER = REPOSITORY / "tests/support/launcher/driver.py"


class Run:
    """One launcher process over one data directory."""

    def __init__(self, folder: Path, *mode: str, **variables: str) -> None:
        self.data_dir = folder / "data"
        self.journal_file = folder / "journal.jsonl"
        self.port = free_ports(1)[0]
        self.env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("DAARION_") and name not in ("DATABASE_URL", "NATS_URL")
        } | {
            "DAARION_DATA_DIR": str(self.data_dir),
            "DAARION_PORT": str(self.port),
            "DAARION_METRICS_PORT": str(free_ports(1)[0]),
            "PYTHONPATH": str(REPOSITORY),
        }
        self.env |= variables
        self.screen_file = folder / "screen"
        self.argv = [sys.executable, str(DRIVER), str(self.journal_file), *mode]
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        with self.screen_file.open("w") as screen:
            self.process = subprocess.Popen(
                self.argv,
                stdout=screen,
                stderr=subprocess.STDOUT,
                env=self.env,
                cwd="/",
                start_new_session=True,
            )

    @property
    def screen(self) -> str:
        return self.screen_file.read_text()

    @property
    def journal(self) -> list[dict]:
        return (
            [json.loads(line) for line in self.journal_file.read_text().splitlines()]
            if self.journal_file.exists()
            else []
        )

    def starts(self) -> list[dict]:
        return [entry for entry in self.journal if entry["event"] == "start"]

    def await_screen(self, pattern: str, timeout_s: float = 90, times: int = 1) -> None:
        wait_for(
            lambda: len(re.findall(pattern, self.screen)) >= times,
            timeout_s,
            lambda: f"{pattern!r} not in:\n{self.screen}",
        )

    def parts(self) -> dict[str, int]:
        content = json.loads((self.data_dir / "run/state.json").read_text())
        return {part["name"]: part["pid"] for part in content["parts"]}

    def command(self, name: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "launcher", name],
            env=self.env,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=20,
        )

    def family(self) -> list[psutil.Process]:
        return [
            *psutil.Process(self.process.pid).children(recursive=True),
            psutil.Process(self.process.pid),
        ]


def wait_for(condition, timeout_s=90.0, message=lambda: "it did not happen"):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, message()
        time.sleep(0.05)


def alive(processes) -> list[psutil.Process]:
    return [
        process
        for process in processes
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    ]


@contextmanager
def running(folder: Path, *mode: str, ready: bool = True, **variables: str):
    run = Run(folder, *mode, **variables)
    run.start()
    seen: list[psutil.Process] = []
    try:
        if ready:
            run.await_screen(r"\] ready\n")
            seen = run.family()
        yield run
    finally:
        with suppress(psutil.NoSuchProcess):
            seen += run.family()
        for process in alive(seen):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        run.process.wait(10)
        for start in run.starts():
            shutil.rmtree(start["directory"], ignore_errors=True)


def ask(url: str, statement: str) -> list[tuple]:
    with psycopg.connect(url) as connection:
        return connection.execute(statement).fetchall()
