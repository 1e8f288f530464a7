"""Load with `wrk`: a closed loop over n connections, each request with a body of its own."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import MODEL, NotMeasured

SCRIPT = Path(__file__).with_name("requests.lua")
CALLER = ("agent:sofia", "microdao:7")
_MARK = "RESULT "


@dataclass(frozen=True)
class Load:
    """Result of one run.

    Times in milliseconds; `errors` counts failed and timed out requests and non-2xx answers.

    `cpu_ms` is what the system's own processes used per request (seconds per 1,000), `memory_mib`
    what they held after the run and `growth_kib` by how much that grew for 1,000 requests.
    """

    requests: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    errors: int
    cpu_ms: float = 0.0
    memory_mib: float = 0.0
    growth_kib: float = 0.0


def find_wrk() -> str:
    """Returns the path of `wrk`.

    Raises:
        NotMeasured: it is not installed.
    """
    path = shutil.which("wrk")
    if path is None:
        raise NotMeasured(
            "the load generator `wrk` is not installed: apt-get install wrk (Debian package `wrk`)"
        )
    return path


async def run_load(
    url: str,
    headers: dict[str, str],
    run: str,
    *,
    connections: int,
    seconds: float,
    padding: int = 0,
    caller: tuple[str, str] = CALLER,
) -> Load:
    """Loads `url` for `seconds` with bodies that name the `run`.

    Raises:
        NotMeasured: wrk failed or got no answer at all.
    """
    options = [
        f"-c{connections}",
        "-t1",
        f"-d{max(1, round(seconds))}s",
        "--timeout",
        "30s",
        "-s",
        str(SCRIPT),
    ]
    for name, value in headers.items():
        options += ["-H", f"{name}: {value}"]
    process = await asyncio.create_subprocess_exec(
        find_wrk(),
        *options,
        url,
        "--",
        run,
        str(padding),
        MODEL,
        *caller,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), seconds + 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return _parsed(output.decode(errors="replace"))


def _parsed(output: str) -> Load:
    line = next((line for line in output.splitlines() if line.startswith(_MARK)), None)
    found = json.loads(line.removeprefix(_MARK)) if line else {}
    if not found.get("requests"):
        raise NotMeasured(f"wrk got no answer: {' '.join(output.split())[:300]}")
    return Load(
        requests=found["requests"],
        requests_per_s=found["requests"] / (found["duration_us"] / 1e6),
        p50_ms=found["p50_us"] / 1000,
        p99_ms=found["p99_us"] / 1000,
        errors=sum(found[kind] for kind in ("connect", "read", "write", "status", "timeout")),
    )
