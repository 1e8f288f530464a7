"""Whether the graph's replicas fit on one node, and how far they may scale there. Pure."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from contracts.errors import ConfigurationError

if TYPE_CHECKING:
    from ray.serve.schema import DeploymentSchema, ServeDeploySchema

Bundle = Mapping[str, float]
_TYPE = "accelerator_type:"
# Sums of shares must not fail on a float's last digit; Ray counts in ten thousandths.
_EPSILON = 1e-6


@dataclass
class _Deployment:
    schema: DeploymentSchema
    bundles: list[Bundle]
    replicas: int = field(init=False)

    def __post_init__(self) -> None:
        self.replicas = int(self.scaling.get("min_replicas", 1))
        if isinstance(self.schema.num_replicas, int) and not self.scaling:
            self.replicas = self.schema.num_replicas

    @property
    def scaling(self) -> dict[str, Any]:
        config = self.schema.autoscaling_config
        return config if isinstance(config, dict) else {}


def fit(config: ServeDeploySchema, node: Mapping[str, float]) -> None:
    """Lowers `max_replicas` in `config` to what fits on `node` (its resources by Ray's names).

    Deployments that come first in the file grow first.

    Raises:
        ConfigurationError: the smallest number of replicas does not fit.
    """
    deployments = [
        _Deployment(schema, bundles)
        for application in config.applications
        for schema, bundles in _bundles(application)
    ]
    # Engines that sleep need room for one of them at a time.
    room: list[list[Bundle]] = [[], *(each.bundles for each in deployments if not each.replicas)]
    for bundles in room:
        _refuse([*_reserved(deployments), *bundles], node)
    for deployment in deployments:
        most = int(deployment.scaling.get("max_replicas") or deployment.replicas)
        while 0 < deployment.replicas < most:
            deployment.replicas += 1
            reserved = _reserved(deployments)
            if any(_lacking([*reserved, *each], node) for each in room):
                deployment.replicas -= 1
                break
        if 0 < deployment.replicas < most:
            deployment.scaling["max_replicas"] = deployment.replicas


def gpus_needed(shares: list[float]) -> int:
    """Returns how many GPUs hold these shares, by first fit in decreasing order."""
    free: list[float] = []
    for share in sorted(shares, reverse=True):
        place = next((n for n, left in enumerate(free) if left + _EPSILON >= share), None)
        if place is None:
            free.append(1.0 - share)
        else:
            free[place] -= share
    return len(free)


def _bundles(application: Any) -> list[tuple[DeploymentSchema, list[Bundle]]]:
    """Returns the bundles of one replica: from the module's `replica_bundles`, else `num_cpus`.

    Deployments that the file does not list have one replica.
    """
    from ray.serve.schema import DeploymentSchema  # noqa: PLC0415  # reads variables

    module = importlib.import_module(application.import_path.partition(":")[0])
    placed: dict[str, list[Bundle]] = getattr(module, "replica_bundles", lambda _args: {})(
        application.args
    )
    listed = {each.name for each in application.deployments}
    unlisted = [DeploymentSchema(name=name) for name in placed if name not in listed]
    return [
        (each, placed.get(each.name) or [{"CPU": _num_cpus(each)}])
        for each in [*application.deployments, *unlisted]
    ]


def _num_cpus(schema: DeploymentSchema) -> float:
    options = schema.ray_actor_options
    given = getattr(options, "num_cpus", None)
    return 1.0 if given is None else float(given)


def _reserved(deployments: list[_Deployment]) -> list[Bundle]:
    return [bundle for each in deployments for bundle in each.bundles * each.replicas]


def _lacking(bundles: list[Bundle], node: Mapping[str, float]) -> dict[str, float]:
    """Returns by name the needs, of which `node` has too little; GPUs are whole ones."""
    needs: Counter[str] = Counter({"GPU": gpus_needed([b["GPU"] for b in bundles if b.get("GPU")])})
    for bundle in bundles:
        needs.update({name: amount for name, amount in bundle.items() if name != "GPU"})
    return {name: n for name, n in needs.items() if n > node.get(name, 0) + _EPSILON}


def _refuse(bundles: list[Bundle], node: Mapping[str, float]) -> None:
    lacking = _lacking(bundles, node)
    if "GPU" in lacking:
        there = int(node.get("GPU", 0))
        needed = (
            f"the graph needs {_counted(lacking['GPU'])} and this machine has {there or 'none'}"
        )
        raise ConfigurationError(
            f"{needed}: lower tensor_parallel_size or embedder_num_gpus (0: on the CPU) "
            "in the Serve file"
            if there
            else f"{needed} that Ray sees: install NVIDIA's driver, or start it without GPU=1"
        )
    if named := next((name for name in lacking if name.startswith(_TYPE)), None):
        found = ", ".join(n.removeprefix(_TYPE) for n in node if n.startswith(_TYPE))
        raise ConfigurationError(
            f"accelerator_type names {named.removeprefix(_TYPE)}, this machine has "
            f"{found or 'no GPU of a known type'}: correct it in the Serve file, or leave it out"
        )
    if "CPU" in lacking:
        raise ConfigurationError(
            f"the graph reserves {lacking['CPU']:.1f} CPUs and this machine has "
            f"{node.get('CPU', 0):.0f}: lower num_cpus or min_replicas in the Serve file"
        )


def _counted(gpus: float) -> str:
    return f"{gpus:.0f} GPU{'s' if gpus > 1 else ''}"
