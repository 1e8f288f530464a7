"""On a node of one machine, Serve's port between deployments listens on loopback, as Ray's own ports do.

Serve binds it to all interfaces (behind Ray's token) and has no setting for it.
"""

from __future__ import annotations

import sys
from typing import Any

_REPLICA = "ray.serve._private.replica"
_ALL_INTERFACES = "[::]:"
_LOOPBACK = "127.0.0.1:"


def keep_on_loopback() -> None:
    """Takes effect in processes of replicas alone, where Serve is loaded before a deployment's class."""
    replica: Any = sys.modules.get(_REPLICA)
    if replica is None or _is_cluster() or getattr(replica, "_keeps_on_loopback", False):
        return
    listen = replica.add_port_to_grpc_server

    def listen_on_loopback(server: Any, address: str) -> Any:
        return listen(server, address.replace(_ALL_INTERFACES, _LOOPBACK))

    replica.add_port_to_grpc_server = listen_on_loopback
    replica._keeps_on_loopback = True  # noqa: SLF001


def _is_cluster() -> bool:
    """Whether this node may have others beside it: Ray's own switch, see `serve_defaults`."""
    from ray._private import ray_constants  # noqa: PLC0415  # only where Ray is loaded already

    return bool(ray_constants.ENABLE_RAY_CLUSTER)
