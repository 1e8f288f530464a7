"""The sections `limits` and `prices` of `llm.yaml`."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import Field

from contracts.llm.limits import Caller, Limit, LimitKey, RateSettings, SubjectKind
from contracts.shapes import Strict

SubjectId = Annotated[str, Field(min_length=1, max_length=256)]


class LimitSettings(Strict):
    """Limits by kind of subject: a default for each of a kind, and overrides by id.

    A credential's id is the name that `GET /limits` shows; `anonymous` is the id of all calls
    while no secret is required.
    """

    agent: RateSettings = RateSettings(requests_per_minute=240_000)
    microdao: RateSettings = RateSettings()
    credential: RateSettings = RateSettings()
    agents: dict[SubjectId, RateSettings] = Field(default={})
    microdaos: dict[SubjectId, RateSettings] = Field(default={})
    credentials: dict[SubjectId, RateSettings] = Field(default={})

    def of(self, caller: Caller) -> list[Limit]:
        """Returns every limit that applies to `caller`."""
        found = self.of_subject("agent", caller.agent_id)
        found += self.of_subject("microdao", caller.microdao_id)
        return found + self.of_subject("credential", caller.credential, caller.granted)

    def of_subject(
        self, kind: SubjectKind, subject: str, granted: RateSettings | None = None
    ) -> list[Limit]:
        """Returns the limits of one subject; where `granted` has one for a meter, the smaller."""
        default, overrides = {
            "agent": (self.agent, self.agents),
            "microdao": (self.microdao, self.microdaos),
            "credential": (self.credential, self.credentials),
        }[kind]
        rates = overrides[subject].over(default) if subject in overrides else default
        rates = rates if granted is None else rates.within(granted)
        return [Limit(LimitKey(kind, subject, meter), amount) for meter, amount in rates.amounts()]


class PriceSettings(Strict):
    """Prices in US dollars per million tokens; `cached_input` is by default `input`."""

    input: Annotated[Decimal, Field(ge=0, le=10**6, allow_inf_nan=False)]
    output: Annotated[Decimal, Field(ge=0, le=10**6, allow_inf_nan=False)]
    cached_input: Annotated[Decimal, Field(ge=0, le=10**6, allow_inf_nan=False)] | None = None
