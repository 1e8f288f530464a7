"""Health of an application and of the whole graph."""

from typing import Literal

from pydantic import BaseModel

State = Literal["ready", "starting", "unavailable"]


class Check(BaseModel):
    """One dependency. `age_s` is how long ago it was looked at; `since_s` how long it has been in this state, both in seconds."""

    state: State
    required: bool = True
    age_s: float
    since_s: float
    reason: str | None = None


class Health(BaseModel):
    """`ready` when every required check is; `degraded` when only optional ones are not; else `starting` or `unavailable`."""

    status: Literal["ready", "degraded", "starting", "unavailable"]
    checks: dict[str, Check] = {}


class Liveness(BaseModel):
    """The process answers; says nothing about its dependencies."""

    status: Literal["alive"] = "alive"
