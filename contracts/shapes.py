"""The bases of wire shapes and settings: what they do with unknown fields is said here alone."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Refuses unknown fields. Its fields cannot be assigned."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Frozen(BaseModel):
    """Ignores unknown fields, which another version or service may send. Its fields cannot be
    assigned.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)
