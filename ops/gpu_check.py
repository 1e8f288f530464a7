"""`make gpu-check`: asks the driver, the libraries and a running graph what a GPU should give.

Prints what was seen beside what it should be. Exits with 0 if all of it is as it should be, else
with 1 and a line for each thing that is not. It starts nothing: `GPU=1 make run` does, in another
terminal (docs/gpu.md). A microDAO with a random name and one memory stays behind.
"""

import argparse
import json
import math
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx2

from configs.environment import read_environment

TIMEOUT_S = 180.0
"""Of each step; the first import of vLLM from a cold disk takes the longest."""
WEIGHTS_MIB = 1024
"""Less GPU memory in use than this means that no model is there."""
FIRST_TOKEN_S, TOKENS_PER_S = 2.0, 20.0
"""Low on purpose: every card that holds the profile's model is faster, and a CPU is not."""
TEXT, QUESTION = "The seed exchange is on Sunday at noon.", "When is the seed exchange?"
TORCH = """import torch
assert torch.cuda.is_available(), f"torch {torch.__version__} sees no CUDA device"
print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, devices: {torch.cuda.device_count()}")
"""
VLLM = "import vllm; print('vllm', vllm.__version__)"
UNEXPECTED = (
    OSError,
    subprocess.TimeoutExpired,
    httpx2.HTTPError,
    LookupError,
    ValueError,  # an answer that is no JSON, a card that does not tell its memory
)
Seen = tuple[str, object]
"""What was seen in words, and whether it is as it should be."""
Check = tuple[str, str, Callable[[], Seen]]
"""A name, what should be seen, and what looks."""


def command(*words: str) -> Seen:
    """Returns the command's last line, of its complaint where it fails. Raises OSError."""
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=TIMEOUT_S)
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
    return (lines or [f"{words[0]} printed nothing"])[-1], done.returncode == 0


def cards() -> Seen:
    """Returns the cards as `MiB in use, name, driver`. Raises OSError."""
    fields = "--query-gpu=memory.used,name,driver_version"
    seen, passed = command("nvidia-smi", fields, "--format=csv,noheader,nounits")
    return seen, passed and int(seen.partition(",")[0]) >= WEIGHTS_MIB


def ask(client: httpx2.Client, path: str, body: Any, see: Callable[[Any], Seen]) -> Seen:
    """Posts the body, or gets the path where there is none; `see` judges the answer's JSON."""
    answer = client.request("POST" if body else "GET", path, json=body)
    if not answer.is_success:
        return f"{answer.status_code} {' '.join(answer.text.split())[:200]}", False
    return see(answer.json())


def stream(client: httpx2.Client, body: Any, *, fast: bool) -> Seen:
    """Streams an answer; the rate is that after the first token."""
    times, tokens = [time.perf_counter()], 0
    with client.stream("POST", "/internal/llm/stream", json=body) as answer:
        for line in answer.iter_lines():
            data = json.loads(line[6:]) if line.startswith("data: ") else {}
            times += [time.perf_counter()] * ("delta" in data)
            tokens = data.get("usage", {}).get("completion_tokens", tokens)
    if not (tokens and times[2:]):
        return f"{answer.status_code}, ended after {len(times) - 1} pieces of text", False
    first, rate = times[1] - times[0], (tokens - 1) / (times[-1] - times[1])
    passed = not fast or (first <= FIRST_TOKEN_S and rate >= TOKENS_PER_S)
    return f"first token after {first:.2f} s, then {rate:.0f} tokens/s", passed


def norm(embedded: Any) -> float:
    """Returns the length of the first vector."""
    return math.hypot(*embedded["data"][0]["embedding"])


def of_the_graph(client: httpx2.Client, url: str, *, fast: bool) -> list[Check]:
    """Returns the checks of the graph at `url`, made as one agent of a new microDAO."""
    caller = {"agent_id": "agent:demo", "microdao_id": f"microdao:gpu-{secrets.token_hex(4)}"}
    chat = {
        "model": "dagi-local-8b",
        "messages": [{"role": "user", "content": "Count from one to fifty."}],
        "max_tokens": 128,
        "metadata": caller,
    }
    asked = partial(partial, ask, client)
    return [
        (
            "health",
            "ready, as `make run` makes it",
            asked("/health", None, lambda it: (it["status"], it["status"] == "ready")),
        ),
        (
            "whole answer",
            "tokens by local",
            asked(
                "/internal/llm/proxy",
                chat,
                lambda it: (
                    f"{it['usage']['completion_tokens']} tokens by {it['provider']}",
                    it["provider"] == "local" and it["content"].strip(),
                ),
            ),
        ),
        (
            "stream",
            f"{FIRST_TOKEN_S:g} s or less, {TOKENS_PER_S:g} tokens/s or more" if fast else "any",
            partial(stream, client, chat, fast=fast),
        ),
        (
            "embeddings",
            "numbers, norm 1.00",
            asked(
                "/internal/llm/v1/embeddings",
                {"model": "multilingual-e5-small", "input": TEXT, "metadata": caller},
                lambda it: (
                    f"{len(it['data'][0]['embedding'])} numbers, norm {norm(it):.2f}",
                    abs(norm(it) - 1) < 0.01,
                ),
            ),
        ),
        (
            "memory store",
            "indexed True",
            asked(
                "/internal/agent-memory/store",
                caller | {"kind": "kb", "content": {"text": TEXT}, "wait_indexed_s": 60},
                lambda it: (f"indexed {it['indexed']}", it["indexed"]),
            ),
        ),
        (
            "memory query",
            "1 found, degraded None",
            asked(
                "/internal/agent-memory/query",
                caller | {"query": QUESTION},
                lambda it: (
                    f"{len(it['items'])} found, degraded {it.get('degraded')}",
                    len(it["items"]) == 1 and not it.get("degraded"),
                ),
            ),
        ),
        (
            "tool",
            "ok True",
            asked(
                "/internal/tools/call",
                caller | {"tool_id": "projects.list"},
                lambda it: (f"ok {it['ok']} {it.get('error') or ''}".strip(), it["ok"]),
            ),
        ),
        (
            "agent",
            "the reply names the project",
            partial(command, sys.executable, "-m", "launcher.demo", "--ingress", url),
        ),
    ]


def failed(checks: list[Check]) -> list[str]:
    """Prints a line for each check; returns one for each that failed."""
    reasons = []
    for name, due, look in checks:
        try:
            seen, passed = look()
        except UNEXPECTED as error:
            seen, passed = f"{type(error).__name__}: {error}", False
        reasons += [] if passed else [f"{name}: {seen}; it should be: {due}"]
        print(f"{name:<13} {'ok' if passed else 'NOT OK':<7} {seen:<48} {due}", flush=True)  # noqa: T201
    return reasons


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="gpu-check", description="checks a running graph")
    parser.add_argument("--url", help="by default the one that DAARION_HOST and DAARION_PORT name")
    parser.add_argument("--without-gpu", action="store_true", help="for the CPU profile")
    given, environment = parser.parse_args(), read_environment()
    fast, url = not given.without_gpu, (given.url or environment.ingress_url).rstrip("/")
    machine: list[Check] = [
        ("driver", f"{WEIGHTS_MIB} MiB or more in use, card, driver", cards),
        ("torch", "CUDA, 1 device or more", partial(command, sys.executable, "-c", TORCH)),
        ("vLLM", "its version", partial(command, sys.executable, "-c", VLLM)),
    ]
    with httpx2.Client(
        base_url=url,
        headers={"X-Internal-Secret": environment.any_secret or ""},
        timeout=TIMEOUT_S,
        trust_env=False,
    ) as client:
        graph = of_the_graph(client, url, fast=fast)
        # Without a ready graph the rest would only repeat it.
        reasons = failed(machine * fast) + (failed(graph[:1]) or failed(graph[1:]))
    sys.stderr.write("".join(f"gpu-check: {reason}\n" for reason in reasons))
    return bool(reasons)


if __name__ == "__main__":
    sys.exit(main())
