"""Two models of `local_llms` on one of Ray's logical GPUs, each with a real CPU engine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from configs.environment import REPOSITORY
from launcher.ports import free_ports

pytestmark = [pytest.mark.graph, pytest.mark.timeout(400, func_only=True)]


def test_two_models_take_turns_on_one_gpu_and_health_wakes_none(tmp_path):
    config, data = tmp_path / "configs", tmp_path / "data"
    config.mkdir()
    data.mkdir()
    models = Path(os.environ.get("DAARION_DATA_DIR") or REPOSITORY / ".data").absolute() / "models"
    (data / "models").symlink_to(models)
    engines = yaml.safe_load((REPOSITORY / "configs" / "engines.yaml").read_text())
    engine = {**engines["local_llm"]["engine"], "max_num_seqs": 2, "kv_cache_mb": 128}
    entry = {"model": "default", "engine": engine, "num_gpus": 1, "min_replicas": 0, "idle_s": 4}
    engines["local_llms"] = {
        "first": {**entry, "served_name": "tiny-first"},
        "second": {**entry, "served_name": "tiny-second", "when_asleep": "fall_back"},
    }
    (config / "engines.yaml").write_text(yaml.safe_dump(engines))
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DAARION_", "RAY_"))
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.engines.sleepers"],
        cwd=REPOSITORY,
        env={
            **inherited,
            "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": 4, "GPU": 1}),
            "DAARION_DATA_DIR": str(data),
            "DAARION_CONFIG_DIR": str(config),
            "DAARION_SERVE_PROXY": "python",
            "DAARION_PORT": str(free_ports(1)[0]),
        },
        check=False,
        capture_output=True,
        text=True,
        timeout=380,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, (lines, done.stderr[-3000:])
    deployed, at_first, woken, refused, turned, _ = lines
    assert deployed == {"failed": [], "pending": []}
    assert at_first == {"at_first": {"first": "asleep", "second": "asleep"}}
    assert woken == {"answered_by": "tiny-first", "woken": "awake"}
    assert refused == {"refused": "engine_unavailable", "retry_after_s": 15.0}
    assert turned == {
        "answered_by": "tiny-second",
        "at_last": {"first": "asleep", "second": "awake"},
    }
