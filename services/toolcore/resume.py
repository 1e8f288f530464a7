"""What to do about a call whose `call_id` is taken already: a pure decision over the recorded row."""

from __future__ import annotations

from enum import Enum

from contracts.tool_ledger import RecordedCall, Settlement
from contracts.tools import Effect


class Resume(Enum):
    """The next step. LOST: its owner is gone and the effect may have happened. FORGOTTEN: its result is no longer kept."""

    CONFLICT = "conflict"
    REPLAY = "replay"
    FORGOTTEN = "forgotten"
    RUN = "run"
    WAIT = "wait"
    LOST = "lost"
    APPROVAL_PENDING = "approval_pending"
    APPROVAL_REJECTED = "approval_rejected"


def resume(recorded: RecordedCall, fingerprint: bytes) -> Resume:
    """Returns how a call with this fingerprint goes on from what is recorded under its id."""
    if recorded.fingerprint != fingerprint:
        return Resume.CONFLICT
    if recorded.state == "awaiting_approval":
        return {None: Resume.APPROVAL_PENDING, "granted": Resume.RUN, "rejected": Resume.APPROVAL_REJECTED}[recorded.approval]
    if recorded.state == "running":
        return _running(recorded)
    assert recorded.settlement is not None
    if recorded.settlement.ok and recorded.settlement.result is None:
        return Resume.FORGOTTEN
    return Resume.RUN if may_run_again(recorded.settlement, recorded.effect) else Resume.REPLAY


def may_run_again(settlement: Settlement, effect: Effect | None) -> bool:
    """Whether this end does not settle its call id: a passing failure that cannot have left an effect to be doubled."""
    if settlement.ok or not settlement.retryable:
        return False
    return effect != "write" or not settlement.effect_possible


def _running(recorded: RecordedCall) -> Resume:
    if not recorded.expired:
        return Resume.WAIT
    return Resume.LOST if recorded.effect == "write" else Resume.RUN
