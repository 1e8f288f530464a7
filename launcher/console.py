"""What the operator reads: lines with the seconds since the start, URLs and a first request."""

from __future__ import annotations

import re
import sys
import time
from contextlib import suppress
from typing import TextIO

from configs.environment import Environment
from launcher.datadir import DataDir

_QUESTION = (
    '{"model":"dagi-local-8b",'
    '"messages":[{"role":"user","content":"What is the capital of France?"}],'
    '"temperature":0,"metadata":{"agent_id":"agent:sofia","microdao_id":"microdao:7"}}'
)


class Console:
    """Writes one line at a time; ignores a closed terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        """Writes `[ 12 s] text`."""
        self.plain(f"[{time.monotonic() - self._began:4.0f} s] {text}")

    def plain(self, text: str) -> None:
        """Writes the text as it is."""
        with suppress(OSError, ValueError):
            self._stream.write(f"{text}\n")
            self._stream.flush()


def address(url: str) -> str:
    """Returns host and port of a URL, without user and password; of several hosts the last."""
    _, separator, place = url.partition("://")
    if not separator or "?" in place:  # libpq's own form, or a query: either may have a password
        return "as configured"
    return re.split(r"[/#]", place.rpartition("@")[2], maxsplit=1)[0]


def graph_ready(environment: Environment) -> str:
    """Returns the URLs and a first request to try."""
    url = environment.ingress_url
    variable = "DAARION_INTERNAL_SECRET" if environment.internal_secret else "DAARION_ADMIN_SECRET"
    secret = f'-H "X-Internal-Secret: ${variable}" ' if environment.has_secret else ""
    return (
        f"  {url}/        every application behind one port\n"
        f"  {url}/docs    every route\n"
        f"  {url}/health  the state of every part\n"
        "  try it:\n"
        f"    curl -s {url}/internal/llm/proxy -H 'content-type: application/json' {secret}\\\n"
        f"      -d '{_QUESTION}'\n"
        "  Ctrl-C stops everything."
    )


def stores_ready(data_dir: DataDir) -> str:
    """Returns what `make services` shows."""
    return (
        f"  The stores are up; their URLs are in {data_dir.services}, where the graph finds them:\n"
        '    eval "$(.venv/bin/python -m deployments.graph.serve_variables)"\n'
        "    .venv/bin/serve run serve_config.yaml\n"
        "  Ctrl-C stops the stores."
    )
