"""Other gateways, installed by the benchmark: LiteLLM's proxy and Portkey's.

Each is installed once, in a folder of its own below `.cache/bench`, at the version below, and run
as its makers' guide says: one worker, one provider, telemetry off. Portkey needs Node; without it,
its row is left out and reported so.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import yaml

from benchmarks.processes import KEY, MODEL, NotMeasured, Started, child_on_port
from configs.environment import REPOSITORY

LITELLM = "litellm[proxy]==1.108.7"
PORTKEY = "@portkey-ai/gateway@1.15.2"
INSTALLED = REPOSITORY / ".cache" / "bench"
INSTALL_TIMEOUT_S = 900.0
READY_S = 120.0
SETTINGS = "litellm_settings"


@asynccontextmanager
async def litellm(folder: Path, upstream: str) -> AsyncIterator[Started]:
    """Runs LiteLLM's proxy with one worker before `upstream` (an OpenAI base URL)."""
    home = INSTALLED / "litellm"
    await _once(
        home / LITELLM.replace("[proxy]", ""),
        [sys.executable, "-m", "venv", "--clear", str(home)],
        [str(home / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", LITELLM],
    )
    config = folder / "litellm.yaml"
    model = {"model": "openai/mock-model", "api_base": upstream, "api_key": KEY}
    settings = {
        "model_list": [{"model_name": MODEL, "litellm_params": model}],
        SETTINGS: {"telemetry": False},
        "general_settings": {"master_key": KEY},
    }
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    variables = {
        **os.environ,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
    }
    argv = [
        str(home / "bin" / "litellm"),
        "--config",
        str(config),
        "--host",
        "127.0.0.1",
        "--num_workers",
        "1",
        "--port",
    ]
    async with child_on_port("litellm", argv, variables, folder, READY_S) as started:
        yield started


@asynccontextmanager
async def portkey(folder: Path) -> AsyncIterator[Started | None]:
    """Runs Portkey's gateway; it learns the provider from each request's headers.

    None where Node is missing.
    """
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        sys.stderr.write("Portkey's gateway is left out: it needs `node` and `npm`\n")
        yield None
        return
    home = INSTALLED / "portkey"
    await _once(
        home / PORTKEY.replace("/", "-"),
        [npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(home), PORTKEY],
    )
    server = home / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    # With `--headless` it serves no console; the flag for the port takes `=`.
    argv = [node, str(server), "--headless", "--port="]
    async with child_on_port(
        "portkey", argv, {**os.environ, "NODE_ENV": "production"}, folder, READY_S
    ) as started:
        yield started


def portkey_headers(upstream: str) -> dict[str, str]:
    """Returns what tells Portkey's gateway where a call goes."""
    return {
        "Authorization": f"Bearer {KEY}",
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": upstream,
    }


async def _once(mark: Path, *commands: list[str]) -> None:
    """Runs the commands unless they were completed before.

    Raises:
        NotMeasured: one failed, or took over fifteen minutes.
    """
    if mark.exists():
        return
    mark.parent.mkdir(parents=True, exist_ok=True)
    for command in commands:
        sys.stderr.write(f"installing: {command[-1]}\n")
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), INSTALL_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise NotMeasured(
                f"installing {command[-1]} took over {INSTALL_TIMEOUT_S:.0f} s"
            ) from None
        if process.returncode:
            said = output.decode(errors="replace").strip().splitlines()
            raise NotMeasured(
                f"installing {command[-1]} failed: {said[-1] if said else process.returncode}"
            )
    mark.touch()
