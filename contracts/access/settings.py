"""Sections of `access.yaml` that services read."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints

from common.loopback import is_loopback
from contracts.access.principals import ISSUED_PREFIX, Grants
from contracts.identity import Identifier
from contracts.shapes import Strict

MIN_KEEP_DAYS = 30
"""No row is removed before; the database checks it, too."""
Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]
"""Asymmetric ones alone: `none` proves nothing, and whoever reads an `HS` key can sign with it."""
StoredKind = Literal["memories", "messages", "documents"]
Count = Annotated[int, Field(ge=0, le=10**12)]


class AuditSettings(Strict):
    """The section `audit`."""

    keep_days: Annotated[int, Field(ge=MIN_KEEP_DAYS, le=3_650)] = 400


def _trusted(location: str) -> str:
    parts = urlsplit(location)
    is_safe = parts.scheme == "https" or (
        parts.scheme == "http" and is_loopback(parts.hostname or "")
    )
    if not location.startswith("/") and (not is_safe or not parts.hostname or "@" in parts.netloc):
        raise ValueError(
            "must be an https:// URL without credentials (http:// for loopback alone), or the "
            "absolute path of a file"
        )
    return location


class IdentityProviderSettings(Strict):
    """The section `identity_provider`: whose tokens (JWTs) count, and as what.

    `issuer` and `audience` are compared exactly. `jwks` is where the public keys are: a URL, or a
    file that every machine of the graph has. Everybody of this provider has `grants`, to which
    tokens add exact ids of agents and microDAOs; whoever has `operator_role` is an operator. The
    name of a claim may be a path of nested ones (`realm_access.roles`).
    """

    issuer: Identifier
    audience: Annotated[list[Identifier], Field(min_length=1, max_length=100)]
    jwks: Annotated[str, StringConstraints(max_length=2_048), AfterValidator(_trusted)]
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)] = get_args(Algorithm)
    agents_claim: Identifier = "agents"
    microdaos_claim: Identifier = "microdaos"
    roles_claim: Identifier = "roles"
    operator_role: Identifier | None = None
    grants: Grants = Grants()

    @property
    def prefix(self) -> str:
        """How the names of this issuer's principals begin."""
        return f"{ISSUED_PREFIX}{hashlib.sha256(self.issuer.encode()).hexdigest()[:8]}:"

    def vouches_for(self, name: str, grants: Grants) -> bool:
        """Whether these settings still let such a principal be."""
        is_operator = grants.kind == "operator"
        return name.startswith(self.prefix) and not (is_operator and self.operator_role is None)


class Quota(Strict):
    """What a microDAO may store; null is unlimited, and for a named microDAO the default."""

    memories: Count | None = None
    messages: Count | None = None
    documents: Count | None = None


class QuotaSettings(Strict):
    """The section `quotas`: how much a microDAO may store."""

    default: Quota = Quota()
    microdaos: dict[Identifier, Quota] = Field(default={}, max_length=100_000)

    def limit(self, kind: StoredKind, microdao_id: str) -> int | None:
        """Returns how many a microDAO may store; None is unlimited."""
        own: int | None = getattr(self.microdaos.get(microdao_id), kind, None)
        default: int | None = getattr(self.default, kind)
        return default if own is None else own
