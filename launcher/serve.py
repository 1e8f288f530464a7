"""The Serve graph as a child process: its command, and its environment.

Ray reads the variables before it starts; every process below inherits them.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from configs.environment import Environment
from launcher.instance import MARKER, Instance
from launcher.process import ChildProcess, Command

_MATH_THREADS = 4
_PROXY_THREADS = 4

# Would make the child join another cluster instead of starting its own.
_FOREIGN = ("RAY_ADDRESS", "RAY_NAMESPACE", "RAY_RUNTIME_ENV_HOOK")


def serve_command(config_file: Path) -> list[str]:
    """Returns the command that runs the graph until SIGTERM; SIGHUP deploys the file again."""
    return [sys.executable, "-m", "deployments.graph.serve_graph", str(config_file.absolute())]


class ServeGraph(ChildProcess):
    """The Serve graph; the health route shows whether it answers.

    Args:
        argv: the command, which blocks until SIGTERM.
        env: its whole environment.
        cwd: its working directory.
        log_file: takes its output.
    """

    stop_timeout_s = 75.0  # the graph shuts down within 60 s: replicas drain first

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], *, cwd: Path, log_file: Path
    ) -> None:
        # A reload before the process has a handler would end it; it reads its configuration anyway.
        command = Command(argv, env, cwd, ignored_signals=(signal.SIGHUP,))
        super().__init__("Serve", log_file, command)


def serve_environment(
    environment: Environment,
    instance: Instance,
    *,
    database_url: str,
    nats_url: str | None,
    cpus: int,
) -> dict[str, str]:
    """Returns the whole environment of the Serve process.

    The operator's variables override the defaults; those of the instance (paths, store URLs,
    marker) override all.

    Args:
        environment: as read from the operator; its variables are inherited.
        instance: separates this graph from others on the machine.
        database_url: the service role's URL.
        nats_url: None leaves NATS out.
        cpus: processors of this machine; math and proxy threads are capped by it.
    """
    inherited = {
        name: value for name, value in environment.variables.items() if name not in _FOREIGN
    }
    merged = (
        _defaults(cpus)
        | (_haproxy(cpus) if environment.serve_proxy == "haproxy" else {})
        | inherited
    )
    return (
        merged
        | _own(environment, instance)
        | {"DATABASE_URL": database_url}
        | ({"NATS_URL": nats_url} if nats_url else {})
    )


def _defaults(cpus: int) -> dict[str, str]:
    return {
        # By default the graph needs no network beyond loopback.
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "DO_NOT_TRACK": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": str(min(cpus, _MATH_THREADS)),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        # A replica leaves HAProxy's list within a second; Ray's 30 s are for cloud load balancers.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
    }


def _haproxy(cpus: int) -> dict[str, str]:
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(cpus, _PROXY_THREADS)),
    }


def _own(environment: Environment, instance: Instance) -> dict[str, str]:
    directory = instance.directory
    return {
        MARKER: instance.identity,
        "DAARION_DATA_DIR": str(environment.data_dir),
        "DAARION_CONFIG_DIR": str(environment.config_dir),
        "DAARION_HOST": environment.host,
        "DAARION_PORT": str(environment.port),
        "DAARION_METRICS_PORT": str(environment.metrics_port),
        "DAARION_RAY_TEMP_DIR": str(directory / "ray"),
        # Temporary files and sockets of libraries are removed with the instance.
        "TMPDIR": str(directory / "tmp"),
        "VLLM_RPC_BASE_PATH": str(directory / "tmp"),
        "TORCHINDUCTOR_CACHE_DIR": str(environment.data_dir / "cache" / "torchinductor"),
        # Ray adds a folder per node to each of these.
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(directory / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(directory / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(directory / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(directory),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(directory / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(instance.stats_port),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(instance.metrics_port),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(instance.fallback_http_port),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(instance.fallback_grpc_port),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(instance.http_ports[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(instance.http_ports[1]),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(instance.grpc_ports[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(instance.grpc_ports[1]),
    }
