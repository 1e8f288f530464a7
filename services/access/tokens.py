"""Tokens (JWTs) of an identity provider: verified by its public keys, without I/O."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import reduce
from typing import Annotated, Any

import jwt
from cachetools import LRUCache
from pydantic import StringConstraints, TypeAdapter, ValidationError

from contracts.access.principals import OPERATOR, Grants, Principal
from contracts.access.settings import IdentityProviderSettings
from contracts.errors import CredentialExpired, Unauthorized, Unavailable
from contracts.identity import Identifier
from services.access.directory import Directory

MAX_TOKEN_BYTES = 8_192
MAX_CLAIMS_CHARS = 6_000
"""Of a principal: delegations carry it, and the ingress takes heads of 16 KB."""
MAX_REMEMBERED = 2_048
LEEWAY_S = 30
"""How far the provider's clock may be off."""
TICK_S = 1.0
KEYS_EVERY_S = 300.0
RETRY_S = 10.0
"""The least time between two reads of the keys."""

_ROLES = TypeAdapter(list[Identifier])
# Patterns stand in the operator's file alone.
_EXACT = TypeAdapter(list[Annotated[Identifier, StringConstraints(pattern=r"^[^*]*$")]])
_REASONS: Mapping[type[Exception], str] = {
    jwt.ImmatureSignatureError: "it is not valid yet",
    jwt.InvalidAlgorithmError: "its algorithm is not allowed, or not that of its key",
    jwt.InvalidAudienceError: "it is for another audience",
    jwt.InvalidIssuerError: "it is of another issuer",
    jwt.MissingRequiredClaimError: "it lacks one of the claims aud, exp, iss and sub",
}

KeySource = Callable[[str], Awaitable[jwt.PyJWKSet]]
"""Reads the keys at a place, within seconds; raises Unreachable or Unavailable."""


class Tokens:
    """Implements IdentityProvider, as the section `identity_provider` of `access.yaml` says.

    `refresh`, which must run every `TICK_S`, reads keys every `KEYS_EVERY_S`, and sooner where a
    token names one that is unknown. While the provider is away the last keys count. What was
    verified is remembered until it expires, and at most until keys are read again.
    """

    def __init__(self, directory: Directory, read_keys: KeySource) -> None:
        self._directory = directory
        self._read_keys = read_keys
        self._settings: IdentityProviderSettings | None = None
        self._keys: dict[str, jwt.PyJWK] = {}
        self._tried_at = 0.0
        self._wanted = True  # before it is time
        self._remembered: LRUCache[bytes, tuple[Principal, float]] = LRUCache(MAX_REMEMBERED)

    async def refresh(self) -> None:
        """Reads the keys where it is time to. Raises as KeySource."""
        settings, now = self._followed(), time.monotonic()
        if settings is None or now < self._tried_at + (RETRY_S if self._wanted else KEYS_EVERY_S):
            return
        self._tried_at = now
        found = await self._read_keys(settings.jwks)
        if settings is self._settings:
            self._wanted = False
            self._keys = {str(key.key_id): key for key in found if key.public_key_use != "enc"}
            self._remembered.clear()

    def read(self, token: bytes) -> Principal | None:
        settings = self._followed()
        if settings is None:
            self._directory.known()
            return None
        if len(token) > MAX_TOKEN_BYTES:
            raise Unauthorized(f"this token has more than {MAX_TOKEN_BYTES} bytes")
        principal, ends = self._remembered.get(token, (None, 0.0))
        if principal is None or ends <= time.time():
            claims = self._verified(token, settings)
            principal = principal_of(claims, settings)
            self._remembered[token] = principal, int(claims["exp"]) + LEEWAY_S
        return principal

    def _followed(self) -> IdentityProviderSettings | None:
        """Returns the directory's present settings. Raises Unavailable."""
        before = self._settings
        self._settings = self._directory.section("identity_provider", IdentityProviderSettings)
        if self._settings is not before and self._settings != before:
            self._remembered.clear()
            self._tried_at, self._wanted = 0.0, True
            if not (self._settings and before and self._settings.jwks == before.jwks):
                self._keys = {}
        return self._settings

    def _verified(self, token: bytes, settings: IdentityProviderSettings) -> dict[str, Any]:
        """Returns a token's claims. Raises Unauthorized, or Unavailable for want of its key."""
        try:
            # The rest is decoded once, and for known keys alone.
            kid = jwt.get_unverified_header(token.partition(b".")[0] + b"..").get("kid")
            key = self._keys.get(str(kid))
            if key is None:
                raise self._missing()
            if key.algorithm_name not in settings.algorithms:
                raise jwt.InvalidAlgorithmError
            return jwt.decode(
                token,
                key,  # verifies by its own algorithm alone
                audience=settings.audience,
                issuer=settings.issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "sub"], "enforce_minimum_key_length": True},
            )
        except jwt.ExpiredSignatureError:
            raise CredentialExpired("this token has expired: present a new one") from None
        except jwt.PyJWTError as error:
            reason = _REASONS.get(type(error), "its form or its signature is wrong")
            raise Unauthorized(f"this token is not valid: {reason}") from None

    def _missing(self) -> Unauthorized | Unavailable:
        """Returns the error for an unknown key, and has the keys read where it is time to."""
        wait_s = self._tried_at + RETRY_S - time.monotonic()
        if not self._wanted and wait_s > 0:
            return Unauthorized("the identity provider has no such key as this token names")
        self._wanted = True
        message = "the identity provider's key for this token is not known yet: retry"
        return Unavailable(message, retry_after_s=max(TICK_S, wait_s))


def principal_of(claims: Mapping[str, Any], settings: IdentityProviderSettings) -> Principal:
    """Returns the principal of a verified token. Raises Unauthorized for claims of a wrong form."""
    grants = settings.grants.model_dump(exclude_unset=True)
    if settings.operator_role in _named(claims, settings.roles_claim, _ROLES):
        grants["kind"] = OPERATOR
    for field, path in (("agents", settings.agents_claim), ("microdaos", settings.microdaos_claim)):
        grants[field] = [*grants.get(field, []), *_named(claims, path, _EXACT)]
    subject = claims["sub"]
    # The readable part is not unique.
    readable = re.sub(r"[^a-z0-9._@-]", "-", subject.lower())[:64]
    digest = hashlib.sha256(json.dumps(subject).encode()).hexdigest()
    name = f"{settings.prefix}{readable}:{digest[:16]}"
    principal = Principal(name, Grants.model_validate(grants), name, issued=True)
    if len(json.dumps(principal.claims())) > MAX_CLAIMS_CHARS:
        raise Unauthorized("this token names too many agents or microDAOs")
    return principal


def _named(claims: Mapping[str, Any], path: str, form: TypeAdapter[list[str]]) -> list[str]:
    """Returns the texts of a claim; of a missing one, none."""
    try:
        nested = reduce(lambda outer, name: outer.get(name) or {}, path.split("."), claims)
        found: Any = claims.get(path) or nested or []
        return form.validate_python([found] if isinstance(found, str) else found)
    except (AttributeError, ValidationError):
        message = f"the claim `{path}` of this token must be a text or a list, without patterns"
        raise Unauthorized(message) from None
