"""Health of an application and of the whole graph."""

from typing import Literal

from pydantic import BaseModel

State = Literal["ready", "asleep", "starting", "unavailable"]
"""`asleep`: a local model without a replica, which a call wakes. It is healthy."""
HEALTHY: frozenset[State] = frozenset({"ready", "asleep"})


class Check(BaseModel):
    """One dependency: seconds since its last probe (`age_s`) and its last change (`since_s`)."""

    state: State
    required: bool = True
    age_s: float
    since_s: float
    reason: str | None = None


class Health(BaseModel):
    """`ready`, `degraded` when only optional checks fail, else `starting` or `unavailable`."""

    status: Literal["ready", "degraded", "starting", "unavailable"]
    checks: dict[str, Check] = {}


class Liveness(BaseModel):
    """The process answers; says nothing about its dependencies."""

    status: Literal["alive"] = "alive"
