"""Prints the variables under which `serve run` runs the graph as `make run` does.

Use: `eval "$(python -m deployments.graph.serve_variables)"`. Ray reads them when `serve run`
starts, before any code of the graph, so they must be set in the shell; those already set win. Each
call chooses free ports and makes a private directory for Ray's sockets, whose paths must be short
(`/tmp/daarion-XXXXXXXX`); remove it when the graph has ended.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys

from configs.environment import Environment, read_environment
from contracts.errors import ConfigurationError
from deployments.graph.serve_defaults import ray_variables
from launcher.instance import MARKER, Instance
from launcher.serve import serve_environment

# Passwords are not printed: a graph finds the URLs that `make services` left in the data directory.
_LEFT_OUT = frozenset({MARKER, "DATABASE_URL", "NATS_URL"})


def serve_variables(environment: Environment, instance: Instance) -> dict[str, str]:
    """Returns the variables that `environment` does not have yet."""
    cpus = os.cpu_count() or 1
    wanted = serve_environment(environment, instance, database_url="", nats_url=None, cpus=cpus)
    sessions = instance.directory / "ray"
    wanted |= {"RAY_TMPDIR": str(sessions)}
    private = dataclasses.replace(environment, ray_temp_dir=sessions, _variables=wanted)
    wanted |= ray_variables(private)
    known = environment.variables
    return {
        name: value
        for name, value in sorted(wanted.items())
        if name not in _LEFT_OUT and known.get(name) != value
    }


def main() -> int:
    """Returns the exit status: 2, with one line on stderr, when the environment is wrong."""
    try:
        environment = read_environment()
        variables = serve_variables(environment, Instance.create())
    except ConfigurationError as error:
        sys.stderr.write(f"refused: {error.message}\n")
        return 2
    sys.stdout.write(
        "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
