"""Rules of the policy pipeline and bounds of a call, as plain values from the configuration."""

from typing import Annotated, Literal

from pydantic import Field

from contracts.identity import Pattern, matches
from contracts.shapes import Strict
from contracts.tools.api import Effect


def host_matches(pattern: str, host: str) -> bool:
    """Whether the pattern, a host or `*.example.com`, names `host` (lower case, no final dot)."""
    pattern = pattern.rstrip(".")
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
    return pattern.strip("[]") == host


class TenantRule(Strict):
    """What one microDAO may call: `deny` wins over `allow`.

    `allow: null` leaves it to the default, `allow: []` allows nothing.
    """

    allow: list[Pattern] | None = None
    deny: list[Pattern] = Field(default=[])


class PolicyRules(Strict):
    """The operator's rules beside those of each tool.

    `default` applies to tools whose definition names no agents and that no tenant rule allows.
    `tenants` holds a rule per microDAO or pattern; the most specific one counts.
    `require_approval_for` names the effects that need approval unless a definition says otherwise;
    a grant expires after `approval_valid_s` seconds.
    """

    default: Literal["allow", "deny"] = "allow"
    tenants: dict[Pattern, TenantRule] = Field(default={})
    require_approval_for: list[Effect] = Field(default=[])
    approval_valid_s: Annotated[float, Field(ge=1, le=86_400 * 30, allow_inf_nan=False)] = 3_600.0

    def of_tenant(self, microdao_id: str) -> tuple[str, TenantRule] | None:
        """Returns the most specific rule for this tenant, with its pattern."""
        found = [pattern for pattern in self.tenants if matches(pattern, microdao_id)]
        best = max(
            found, key=lambda pattern: (not pattern.endswith("*"), len(pattern)), default=None
        )
        return None if best is None else (best, self.tenants[best])


class CallBounds(Strict):
    """Bounds of what a caller sends: sizes in bytes of JSON text, nesting and number of values."""

    max_args_bytes: Annotated[int, Field(ge=256, le=8 << 20)] = 256 * 1024
    max_context_bytes: Annotated[int, Field(ge=256, le=8 << 20)] = 64 * 1024
    max_depth: Annotated[int, Field(ge=1, le=128)] = 32
    max_values: Annotated[int, Field(ge=1, le=1_000_000)] = 20_000
