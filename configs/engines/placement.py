"""The resources of one engine: its share of a node."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, StringConstraints, model_validator

from contracts.shapes import Strict

_ACCELERATOR_SHARE = 0.001  # Ray's way to ask for a node of that type


class Placement(Strict):
    """Resources of one engine.

    `num_cpus` is the replica's own share, `num_gpus` the share of a GPU that each worker takes: 0
    for a CPU engine, by default 1 where `accelerator_type` is named (one of Ray's names: `L4`,
    `H100`, …; None takes any GPU).
    """

    num_cpus: Annotated[float, Field(gt=0)] = 0.5
    num_gpus: Annotated[float, Field(ge=0, le=1)] = 0
    accelerator_type: Annotated[str, StringConstraints(min_length=1)] | None = None
    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="before")
    @classmethod
    def _a_named_card_is_a_whole_one(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("accelerator_type") is not None:
            return {"num_gpus": 1, **given}
        return given

    @model_validator(mode="after")
    def _whole_gpus(self) -> Placement:
        if self.accelerator_type is not None and not self.num_gpus:
            raise ValueError(
                "accelerator_type names a GPU, but num_gpus is 0: "
                "give a share, or leave accelerator_type out"
            )
        if self.tensor_parallel_size > 1 and 0 < self.num_gpus < 1:
            raise ValueError(
                "an engine on several GPUs takes whole ones: "
                "set num_gpus to 1, or tensor_parallel_size to 1"
            )
        return self

    @property
    def on_gpu(self) -> bool:
        return self.num_gpus > 0

    @property
    def worker_bundles(self) -> list[dict[str, float]]:
        """Each worker's share of a GPU; a CPU engine works inside the replica's own share."""
        if not self.on_gpu:
            return [{"CPU": self.num_cpus}]
        bundle = {"GPU": self.num_gpus}
        if self.accelerator_type is not None:
            bundle[f"accelerator_type:{self.accelerator_type}"] = _ACCELERATOR_SHARE
        return [dict(bundle) for _ in range(self.tensor_parallel_size)]

    @property
    def replica_bundles(self) -> list[dict[str, float]]:
        """The replica's placement group: its own share is part of the first worker's bundle."""
        if not self.on_gpu:
            return self.worker_bundles
        first, *others = self.worker_bundles
        return [{"CPU": self.num_cpus, **first}, *others]

    @property
    def placement(self) -> Placement:
        """The placement alone: other settings beside it must not restart an engine."""
        return Placement(**self.model_dump(include=set(Placement.model_fields)))
