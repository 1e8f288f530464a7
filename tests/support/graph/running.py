"""A real graph for tests: `launcher run` with its own data folder, configuration and ports."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import yaml

from tests.support.otlp import Collector

REPOSITORY = Path(__file__).resolve().parents[3]
READY_S = 420
STOP_S = 180  # the launcher gives the graph 75 s, then each store its own time
# Variables that would lead the graph to other stores.
FOREIGN = ("DATABASE_URL", "DATABASE_OWNER_URL", "NATS_URL")


class RunningGraph:
    """The graph and a scripted upstream; `stop` ends both and returns processes left behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.config_dir = folder / "configs"
        self.port, self.metrics_port = _free_port(), _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "launcher.log"
        self._launcher: subprocess.Popen[bytes] | None = None
        self._upstream: subprocess.Popen[str] | None = None
        self.upstream_url = ""
        self.collector = Collector()
        """Has the spans of requests with a sampled `traceparent`; other requests make none."""
        self.ready_after_s = 0.0
        self.while_starting: list[httpx.Response] = []

    def start(self) -> None:
        self._start_upstream()
        self._configure()
        started = time.monotonic()
        with self.log.open("wb") as log:
            serve_file = str(self.folder / "serve_config.yaml")
            self._launcher = subprocess.Popen(
                [sys.executable, "-m", "launcher", "run", "--config", serve_file],
                cwd=REPOSITORY,
                env=self._environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.wait_ready()
        self.ready_after_s = time.monotonic() - started

    def wait_ready(self, timeout_s: float = READY_S) -> None:
        """Waits until `/health` says 200. Raises AssertionError with the log's end."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            assert self._launcher.poll() is None, f"the launcher ended:\n{self.tail()}"
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", timeout=3).status_code == 200:
                    return
                self.while_starting.append(httpx.get(f"{self.url}/internal/llm/models", timeout=3))
            time.sleep(0.5)
        raise AssertionError(f"not ready within {timeout_s} s:\n{self.tail()}")

    def stop(self) -> list[str]:
        """Sends SIGTERM; returns what still runs afterwards, by name."""
        left = self.processes()
        if self._launcher is not None and self._launcher.poll() is None:
            self._launcher.send_signal(signal.SIGTERM)
            self._launcher.wait(STOP_S)
        if self._upstream is not None:
            self._upstream.terminate()
            self._upstream.wait(10)
        self.collector.close()
        _, alive = psutil.wait_procs(left, timeout=5)
        return [" ".join(process.cmdline()) or process.name() for process in alive]

    def reload(self, expected: str = "reloaded") -> None:
        """`make reload`, which waits for the graph's answer; it must begin with `expected`."""
        command = [sys.executable, "-m", "launcher", "reload"]
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env=self._environment(),
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.stdout.startswith(expected), done.stdout + done.stderr
        assert done.returncode == (0 if expected == "reloaded" else 1)

    def processes(self) -> list[psutil.Process]:
        """Every process below the launcher."""
        if self._launcher is None or self._launcher.poll() is not None:
            return []
        return psutil.Process(self._launcher.pid).children(recursive=True)

    def replicas(self, application: str, deployment: str) -> list[psutil.Process]:
        """The processes of one deployment's replicas."""
        title = f"ServeReplica:{application}:{deployment}"
        return [process for process in self.processes() if title in _title(process)]

    def named(self, text: str) -> list[psutil.Process]:
        """Processes below the launcher whose command line holds `text`."""
        return [process for process in self.processes() if text in _title(process)]

    def upstream(self, *plays: str) -> dict:
        """Forgets what the upstream saw and scripts it; without `plays` returns what it saw."""
        url = self.upstream_url.replace("/v1", "/control")
        if not plays:
            return httpx.get(url).json()
        httpx.delete(url).raise_for_status()
        return httpx.post(url, json={"plays": list(plays)}).raise_for_status().json()

    def events(self, application: str) -> list[dict]:
        """The structured events of an application's replicas."""
        files = sorted((self.data_dir / "logs" / "events").glob(f"{application}-*.jsonl"))
        return [
            json.loads(line)
            for file in files
            for line in file.read_text(encoding="utf-8").splitlines()
        ]

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _environment(self) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("DAARION_", "RAY_", "OTEL_")) and name not in FOREIGN
        }
        return inherited | {
            "DAARION_DATA_DIR": str(self.data_dir),
            "DAARION_CONFIG_DIR": str(self.config_dir),
            "DAARION_PORT": str(self.port),
            "DAARION_METRICS_PORT": str(self.metrics_port),
            "OPENAI_API_KEY": "sk-test-0123456789abcdef",
            "PYTHONPATH": str(self.folder / "packages"),
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{self.collector.url}/v1/traces",
            "OTEL_TRACES_SAMPLER": "parentbased_always_off",
            "OTEL_BSP_SCHEDULE_DELAY": "500",
        }

    def _start_upstream(self) -> None:
        self._upstream = subprocess.Popen(
            [sys.executable, "-m", "tests.support.llm.upstream", "--port", "0"],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        line = self._upstream.stdout.readline()
        self.upstream_url = next(word for word in line.split() if word.startswith("http"))

    def _configure(self) -> None:
        """The shipped configuration with the upstream for OpenAI, limits, two proxy replicas."""
        shutil.copytree(
            REPOSITORY / "configs",
            self.config_dir,
            ignore=shutil.ignore_patterns("*.py", "__pycache__"),
        )
        llm = yaml.safe_load((self.config_dir / "llm.yaml").read_text())
        llm["providers"]["openai"]["base_url"] = self.upstream_url
        llm["models"]["resumed"] = {
            "provider": "openai",
            "name": "first",
            "fallbacks": ["dagi-local-8b"],
            "stream_recovery": "resume",
        }
        spill = {"to": ["gpt-4.1-mini"], "queue_depth": 2, "return_depth": 0}
        llm["models"]["spilling"] = {**llm["models"]["dagi-local-8b"], "spill": spill}
        llm["limits"]["agents"] = {
            "agent:strict": {"requests_per_minute": 30},
            "agent:enduring": {
                "requests_per_minute": 40,
                "tokens_per_minute": 1_000_000,
                "concurrent_calls": 8,
                "usd_per_day": 5,
            },
            "agent:bereaved": {"requests_per_minute": 30},
            "agent:thrifty": {"requests_per_minute": 5},
        }
        llm["prices"] = {"gpt-4.1-mini": {"input": 40, "output": 160}}
        self.write_llm(llm)
        serve = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())
        for application in serve["applications"]:
            for deployment in application["deployments"]:
                if deployment["name"] == "LLMProxy":
                    deployment["autoscaling_config"] = {
                        "min_replicas": 2,
                        "max_replicas": 2,
                        "target_ongoing_requests": 200,
                    }
        (self.folder / "serve_config.yaml").write_text(yaml.safe_dump(serve))
        shutil.copytree(
            REPOSITORY / "tests/support/tools/hostile_toolbox",
            self.folder / "packages/hostile_toolbox",
        )
        self.data_dir.mkdir(mode=0o700)
        models = (
            Path(os.environ.get("DAARION_DATA_DIR") or REPOSITORY / ".data").absolute() / "models"
        )
        (self.data_dir / "models").symlink_to(models)

    def write_llm(self, llm: dict) -> None:
        (self.config_dir / "llm.yaml").write_text(yaml.safe_dump(llm, sort_keys=False))

    def tools(self) -> dict:
        """The configured tools, to be changed and written back with `write_tools`."""
        return yaml.safe_load((self.config_dir / "tools.yaml").read_text())

    def write_tools(self, tools: dict) -> None:
        (self.config_dir / "tools.yaml").write_text(
            yaml.safe_dump(tools, sort_keys=False, allow_unicode=True)
        )


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
