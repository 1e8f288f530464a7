"""The sections `limits` and `prices` of `llm.yaml`."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, get_args

from pydantic import Field

from contracts.llm.limits import CALENDAR, NANO_PER_USD, Caller, Limit, LimitKey, Meter, SubjectKind
from contracts.shapes import Strict

SubjectId = Annotated[str, Field(min_length=1, max_length=256)]
Count = Annotated[int, Field(ge=1, le=10**12)]
Dollars = Annotated[
    Decimal, Field(gt=0, le=10**9, max_digits=18, decimal_places=9, allow_inf_nan=False)
]


class RateSettings(Strict):
    """Limits of one subject; null means unlimited. An override inherits what it leaves out.

    Tokens are those of prompt and answer together. A minute slides; days and months are those of
    the calendar in UTC.
    """

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    concurrent_calls: Count | None = None
    usd_per_day: Dollars | None = None
    usd_per_month: Dollars | None = None

    def over(self, base: RateSettings) -> RateSettings:
        """Returns these limits, with those of `base` for the ones left out."""
        return base.model_copy(update={name: getattr(self, name) for name in self.model_fields_set})

    def amounts(self) -> Iterator[tuple[Meter, int]]:
        """Yields every limit that is set, in its meter's units: money in nano-dollars."""
        for meter in get_args(Meter):
            value = getattr(self, meter)
            if value is not None:
                yield meter, int(value * NANO_PER_USD) if meter in CALENDAR else value


class LimitSettings(Strict):
    """Limits by kind of subject: a default for each of a kind, and overrides by id.

    A credential's id is the name that `GET /limits` shows; `anonymous` is the id of all calls
    while no secret is required.
    """

    agent: RateSettings = RateSettings(requests_per_minute=240_000)
    microdao: RateSettings = RateSettings()
    credential: RateSettings = RateSettings()
    agents: dict[SubjectId, RateSettings] = {}
    microdaos: dict[SubjectId, RateSettings] = {}
    credentials: dict[SubjectId, RateSettings] = {}

    def of(self, caller: Caller) -> list[Limit]:
        """Returns every limit that applies to `caller`."""
        found = self.of_subject("agent", caller.agent_id)
        found += self.of_subject("microdao", caller.microdao_id)
        return found + self.of_subject("credential", caller.credential)

    def of_subject(self, kind: SubjectKind, subject: str) -> list[Limit]:
        """Returns the limits of one subject."""
        default, overrides = {
            "agent": (self.agent, self.agents),
            "microdao": (self.microdao, self.microdaos),
            "credential": (self.credential, self.credentials),
        }[kind]
        rates = overrides[subject].over(default) if subject in overrides else default
        return [Limit(LimitKey(kind, subject, meter), amount) for meter, amount in rates.amounts()]


class PriceSettings(Strict):
    """Prices in US dollars per million tokens; `cached_input` is by default `input`."""

    input: Annotated[Decimal, Field(ge=0, le=10**6, allow_inf_nan=False)]
    output: Annotated[Decimal, Field(ge=0, le=10**6, allow_inf_nan=False)]
    cached_input: Annotated[Decimal, Field(ge=0, le=10**6, allow_inf_nan=False)] | None = None
