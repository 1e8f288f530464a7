"""How a call continues whose `call_id` is taken: a pure decision over the recorded row."""

from __future__ import annotations

from enum import Enum

from contracts.tools.api import Decision, Effect
from contracts.tools.ledger import RecordedCall, Settlement


class Resume(Enum):
    """The next step.

    FORGOTTEN: the call succeeded, and its result is no longer kept. LOST: its owner is gone, and
    the effect may have happened. APPROVAL_LAPSED: what would run now is not what was approved, or
    the approval has expired.
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


APPROVAL = "approval"
"""The rule of calls that wait for an administrator, or were rejected by one."""
STILL_RUNNING = Decision(
    allowed=False,
    rule="call_id",
    error_kind="conflict",
    reason="a call with this call_id is still running: ask again later with the same call_id",
    retryable=True,
)
REFUSALS = {
    Resume.CONFLICT: Decision(
        allowed=False,
        rule="call_id",
        error_kind="conflict",
        reason="this call_id belongs to a call with another tool, agent or arguments: "
        "use a new one",
    ),
    Resume.FORGOTTEN: Decision(
        allowed=False,
        rule="call_id",
        error_kind="conflict",
        reason="a call with this call_id succeeded, and its result is no longer kept: "
        "use a new call_id to run it again",
    ),
    Resume.APPROVAL_PENDING: Decision(
        allowed=False,
        rule=APPROVAL,
        error_kind="denied",
        reason="this call waits for an administrator's approval: "
        "repeat it with the same call_id once it is granted",
        retryable=True,
    ),
    Resume.APPROVAL_LAPSED: Decision(
        allowed=False,
        rule=APPROVAL,
        error_kind="conflict",
        reason="the tool or the context has changed since approval was requested, "
        "or the approval has expired: use a new call_id",
    ),
    Resume.APPROVAL_REJECTED: Decision(
        allowed=False,
        rule=APPROVAL,
        error_kind="denied",
        reason="an administrator rejected this call",
    ),
}


def resume(
    recorded: RecordedCall, fingerprint: bytes, approval_digest: bytes | None = None
) -> Resume:
    """Returns how a call with this fingerprint continues from what is recorded under its id.

    `approval_digest` covers what would run now, if that needs approval.
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
    if recorded.settlement.ok and recorded.settlement.body is None:
        return Resume.FORGOTTEN
    return Resume.RUN if can_run_again(recorded.settlement, recorded.effect) else Resume.REPLAY


def can_run_again(settlement: Settlement, effect: Effect | None) -> bool:
    """Whether the call may run again: its failure may pass, and no effect would happen twice."""
    if settlement.ok or not settlement.retryable:
        return False
    return effect != "write" or not settlement.effect_possible


def _running(recorded: RecordedCall) -> Resume:
    if not recorded.expired:
        return Resume.WAIT
    return Resume.LOST if recorded.effect == "write" else Resume.RUN
