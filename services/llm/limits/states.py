"""The use case behind `GET /limits`: a caller's limits, as the authority knows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from contracts.llm.limits import (
    Limit,
    LimitsFilter,
    LimitsPage,
    LimitState,
    Meter,
    RateSettings,
    SubjectKind,
    shown,
)
from services.llm.limits.protocol import Authority, Standing

LimitsOfSubject = Callable[[SubjectKind, str, RateSettings | None], Sequence[Limit]]
"""Returns the limits of one subject; the last argument are those that it has of its own."""


_PER: dict[Meter, Literal["minute", "day", "month"] | None] = {
    "requests_per_minute": "minute",
    "tokens_per_minute": "minute",
    "concurrent_calls": None,
    "usd_per_day": "day",
    "usd_per_month": "month",
}


class LimitStates:
    """Asks the authority.

    `limits_of` returns the lookup of a subject's limits; it is read per request, for reloads.
    """

    def __init__(self, authority: Authority, limits_of: Callable[[], LimitsOfSubject]) -> None:
        self._authority = authority
        self._limits_of = limits_of

    async def page(
        self, wanted: LimitsFilter, credential: str, granted: RateSettings | None
    ) -> LimitsPage:
        """Returns the limits of the wanted agent and microDAO and of the presented credential.

        `granted` are limits that its principal has of its own.

        Raises:
            LimitsUnavailable: the authority cannot be reached.
        """
        subjects: list[tuple[SubjectKind, str | None, RateSettings | None]] = [
            ("agent", wanted.agent_id, None),
            ("microdao", wanted.microdao_id, None),
            ("credential", credential, granted),
        ]
        limits_of = self._limits_of()
        limits = [
            limit
            for kind, subject, own in subjects
            if subject is not None
            for limit in limits_of(kind, subject, own)
        ]
        standings = await self._authority.standing(limits) if limits else ()
        return LimitsPage(
            limits=[
                _state(limit, standing) for limit, standing in zip(limits, standings, strict=True)
            ]
        )


def _state(limit: Limit, standing: Standing) -> LimitState:
    kind, subject, meter = limit.key
    return LimitState(
        limit=f"{kind}.{meter}",
        subject=subject,
        per=_PER[meter],
        amount=shown(meter, limit.amount),
        used=shown(meter, standing.used),
        reserved=shown(meter, standing.reserved),
        left=shown(meter, standing.left),
        reset_s=None if standing.reset_s is None else round(standing.reset_s, 1),
    )
