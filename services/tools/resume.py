"""What to do about a call whose `call_id` is taken already: a pure decision over the recorded row."""

from __future__ import annotations

from enum import Enum

from contracts.tools.api import Effect
from contracts.tools.ledger import RecordedCall, Settlement


class Resume(Enum):
    """The next step. LOST: its owner is gone and the effect may have happened. FORGOTTEN: its result is no longer kept.

    APPROVAL_LAPSED: what was put up for approval is not what would run now, or its approval has ended.
    """

    CONFLICT = "conflict"
    REPLAY = "replay"
    FORGOTTEN = "forgotten"
    RUN = "run"
    WAIT = "wait"
    LOST = "lost"
    APPROVAL_PENDING = "approval_pending"
    APPROVAL_REJECTED = "approval_rejected"
    APPROVAL_LAPSED = "approval_lapsed"


def resume(
    recorded: RecordedCall, fingerprint: bytes, approval_digest: bytes | None = None
) -> Resume:
    """Returns how a call with this fingerprint goes on from what is recorded under its id.

    `approval_digest` stands for what would run now, where it needs approval.
    """
    if recorded.fingerprint != fingerprint:
        return Resume.CONFLICT
    covered = approval_digest is None or approval_digest == recorded.approval_digest
    granted = recorded.approval == "granted" and not recorded.approval_ended
    if recorded.state == "awaiting_approval":
        if recorded.approval == "rejected":
            return Resume.APPROVAL_REJECTED
        if not covered:
            return Resume.APPROVAL_LAPSED
        return Resume.RUN if granted else Resume.APPROVAL_PENDING
    step = _running(recorded) if recorded.state == "running" else _settled(recorded)
    if step is Resume.RUN and approval_digest is not None and not (covered and granted):
        return Resume.APPROVAL_LAPSED
    return step


def _settled(recorded: RecordedCall) -> Resume:
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
