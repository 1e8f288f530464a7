"""Where the product changes Ray Serve, or calls what Serve keeps private.

The engine has `deployments/engines/ray_patches.py`, whose imports take seconds; HAProxy has
`haproxy-loopback.sh` and `haproxy.sed`. `tests/graph/test_ray_patches.py` fails when Ray changes
what one of them relies on. Imported in every process of the graph, so it must stay light.
"""

from __future__ import annotations

import sys
from typing import Any

RAY_VERSION = "2.60"
"""The version that all patches were written for and checked against."""

_REPLICA = "ray.serve._private.replica"
_CONTEXT = "ray.serve.context"


def keep_on_loopback() -> None:
    """Binds Serve's port for calls between deployments to loopback, on a node of one machine.

    Serve binds it to all interfaces, behind Ray's token, and has no setting for it. Takes effect in
    processes of replicas alone: there Serve is loaded before the class of the deployment.
    """
    replica: Any = sys.modules.get(_REPLICA)
    if replica is None or _may_have_other_nodes() or hasattr(replica, "_keeps_on_loopback"):
        return
    bind = replica.add_port_to_grpc_server

    def bind_to_loopback(server: Any, address: str) -> Any:
        return bind(server, address.replace("[::]:", "127.0.0.1:"))

    replica.add_port_to_grpc_server = bind_to_loopback
    replica._keeps_on_loopback = True  # noqa: SLF001


def _may_have_other_nodes() -> bool:
    """Ray's own switch, which `serve_defaults` sets."""
    from ray._private import ray_constants  # noqa: PLC0415  # only where Ray is loaded already

    return bool(ray_constants.ENABLE_RAY_CLUSTER)


def bound_heads() -> list[Any]:
    """Makes `BoundedHeads` the protocol of every HTTP server of Serve in this process.

    Serve has no setting for a server's protocol, but calls this before it starts one
    (`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`, see `serve_defaults`) and takes uvicorn's default.

    Returns no middlewares; Serve expects a list of them.
    """
    from uvicorn.protocols.http import auto  # noqa: PLC0415  # only where HTTP is served

    from deployments.graph.request_heads import BoundedHeads  # noqa: PLC0415

    auto.AutoHTTPProtocol = BoundedHeads
    return []


def serve_client() -> Any:
    """Returns Serve's client of its controller.

    It deploys a whole file at once (`deploy_apps`), as `serve run` does, and lists statuses
    (`list_serve_statuses`) at a tenth of the CPU of `serve.status()`. Both lack a public function.
    """
    from ray.serve.context import _get_global_client  # noqa: PLC0415

    return _get_global_client()


def serve_host() -> str | None:
    """Returns the address of Serve's ingress as Serve knows it; None outside a replica.

    Serve has no public function for it.
    """
    context: Any = sys.modules.get(_CONTEXT)  # a process without Ray must not load it
    if context is None or context._get_internal_replica_context() is None:  # noqa: SLF001
        return None
    host: str | None = serve_client().http_config.host
    return host
