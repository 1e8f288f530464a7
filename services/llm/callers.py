"""Whose limits a call counts against."""

from __future__ import annotations

from contracts.access.principals import acting
from contracts.llm.limits import Caller
from contracts.llm.requests import CallMetadata


def caller_of(metadata: CallMetadata, credential: str) -> Caller:
    """Returns the caller that `metadata` names, with the limits of the principal at work."""
    return Caller(metadata.agent_id, metadata.microdao_id, credential, acting().limits)
