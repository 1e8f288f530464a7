"""`make fuzz`: requests made from the OpenAPI document, against a graph with empty stores.

Every status must be documented (500 never is), and bodies must have their documented type and
shape. Arguments go to schemathesis:
`make fuzz ARGS="--max-time 600 --include-path /internal/tools/call"`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.graph.running import RunningGraph

CHECKS = "status_code_conformance,content_type_conformance,response_schema_conformance"
DEFAULTS = ("--max-time", "300")
ENDLESS = r"/events$"


def main(arguments: list[str]) -> int:
    """Returns schemathesis' exit status: 0 when nothing was found."""
    with tempfile.TemporaryDirectory(prefix="daarion-fuzz-", ignore_cleanup_errors=True) as folder:
        graph = RunningGraph(Path(folder))
        try:
            print("starting a graph to be fuzzed …", flush=True)
            graph.start()
            command = [
                str(Path(sys.executable).with_name("schemathesis")),
                "run",
                f"{graph.url}/openapi.json",
            ]
            command += [
                "--checks",
                CHECKS,
                "--exclude-path-regex",
                ENDLESS,
                "--request-timeout",
                "30",
                "--continue-on-failure",
            ]
            command += ["--suppress-health-check", "all", "--no-color", *(arguments or DEFAULTS)]
            return subprocess.run(
                command, check=False, cwd=folder, env={**os.environ, "NO_COLOR": "1"}
            ).returncode
        finally:
            if left := graph.stop():
                print(f"left behind: {left}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
