"""How a call continues whose id is taken: a pure decision over the recorded call."""

from __future__ import annotations

from uuid import UUID

import pytest

from contracts.tools.ledger import RecordedCall, Settlement
from services.tools.resume import Resume, resume


def recorded(**fields):
    values = {
        "id": UUID(int=1),
        "microdao_id": "m",
        "tool_version": 1,
        "effect": "write",
        "fingerprint": b"f",
        "state": "settled",
        "attempt": 1,
        "expired": False,
        "approval": None,
        "settlement": Settlement(ok=True, body="1"),
        "result_kept_until": None,
    }
    return RecordedCall(**{**values, **fields})


def failure(**fields):
    return Settlement(ok=False, error_kind="upstream", **fields)


@pytest.mark.parametrize(
    ("call", "step"),
    [
        (recorded(fingerprint=b"g"), Resume.CONFLICT),
        (recorded(fingerprint=b"g", state="running", settlement=None), Resume.CONFLICT),
        (recorded(), Resume.REPLAY),
        (recorded(settlement=Settlement(ok=True, body=None)), Resume.FORGOTTEN),
        (recorded(settlement=failure()), Resume.REPLAY),
        (recorded(settlement=failure(retryable=True)), Resume.RUN),
        (recorded(settlement=failure(retryable=True, effect_possible=True)), Resume.REPLAY),
        (
            recorded(settlement=failure(retryable=True, effect_possible=True), effect="idempotent"),
            Resume.RUN,
        ),
        (
            recorded(settlement=failure(retryable=True, effect_possible=True), effect="read"),
            Resume.RUN,
        ),
        (recorded(state="running", settlement=None), Resume.WAIT),
        (recorded(state="running", settlement=None, expired=True), Resume.LOST),
        (recorded(state="running", settlement=None, expired=True, effect="idempotent"), Resume.RUN),
        (recorded(state="awaiting_approval", settlement=None), Resume.APPROVAL_PENDING),
        (recorded(state="awaiting_approval", settlement=None, approval="granted"), Resume.RUN),
        (
            recorded(state="awaiting_approval", settlement=None, approval="rejected"),
            Resume.APPROVAL_REJECTED,
        ),
    ],
)
def test_decisions_about_a_call_id_that_is_taken(call, step):
    assert resume(call, b"f") is step


def waiting(**fields):
    return recorded(
        **{
            "state": "awaiting_approval",
            "settlement": None,
            "approval": "granted",
            "approval_digest": b"d",
            **fields,
        }
    )


PASSING = Settlement(ok=False, error_kind="unavailable", retryable=True)


@pytest.mark.parametrize(
    ("call", "step"),
    [
        (waiting(approval=None), Resume.APPROVAL_PENDING),
        (waiting(), Resume.RUN),
        (waiting(approval_ended=True), Resume.APPROVAL_PENDING),
        (waiting(approval_digest=b"e"), Resume.APPROVAL_LAPSED),
        (waiting(approval=None, approval_digest=None), Resume.APPROVAL_LAPSED),
        (waiting(approval="rejected", approval_digest=b"e"), Resume.APPROVAL_REJECTED),
        (waiting(state="settled", settlement=PASSING), Resume.RUN),
        (waiting(state="settled", settlement=PASSING, approval_ended=True), Resume.APPROVAL_LAPSED),
        (
            waiting(state="settled", settlement=PASSING, approval_digest=b"e"),
            Resume.APPROVAL_LAPSED,
        ),
        (waiting(state="settled", settlement=PASSING, approval=None), Resume.APPROVAL_LAPSED),
        (
            waiting(
                state="settled", settlement=Settlement(ok=True, body="1"), approval_digest=b"e"
            ),
            Resume.REPLAY,
        ),
        (waiting(state="running", expired=True, effect="idempotent"), Resume.RUN),
        (
            waiting(state="running", expired=True, effect="idempotent", approval_digest=b"e"),
            Resume.APPROVAL_LAPSED,
        ),
        (waiting(state="running", approval_digest=b"e"), Resume.WAIT),
    ],
)
def test_decisions_about_a_taken_call_id_that_needs_approval(call, step):
    assert resume(call, b"f", b"d") is step
