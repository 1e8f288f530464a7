"""The agent runtime as a child process that a test may kill."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys

import yaml

from configs.environment import REPOSITORY


@contextlib.asynccontextmanager
async def process(here, folder, **args):
    """The agent runtime as `make agent-runtime` starts it, behind the platform's address."""
    config = folder / "configs"
    (config / "agents").mkdir(parents=True, exist_ok=True)
    for one in here.blueprints.values():
        (config / "agents" / f"{one.id.partition(':')[2]}.yaml").write_text(
            yaml.safe_dump(one.model_dump(mode="json", exclude_none=True))
        )
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DAARION_", "DATABASE_", "NATS_"))
    }
    environment |= {
        "DATABASE_URL": here.database_url,
        "DAARION_CONFIG_DIR": str(config),
        "DAARION_DATA_DIR": str(folder / "data"),
    }
    settings = json.dumps({"lease_s": 2, "claim_every_s": 0.2, "patience_s": 2, **args})
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "deployments.agents.process",
        "--ingress",
        here.url,
        "--args",
        settings,
        cwd=REPOSITORY,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            line = (await child.stdout.readline()).decode()
        assert "agent runtime at http" in line
        yield child, line.split()[-1]
    finally:
        if child.returncode is None:
            child.terminate()
        await child.wait()


async def until(condition, seconds=60):
    async with asyncio.timeout(seconds):
        while not (found := await condition()):
            await asyncio.sleep(0.05)
        return found
