"""Who presents a credential: a secret of the environment, a key, a delegation, a foreign token."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Protocol

from contracts.access.keys import KEY_PREFIX
from contracts.access.principals import ANYONE, OPERATORS, OURSELVES, Principal
from contracts.errors import Forbidden, Unauthorized
from services.access.audit import AuditTrail
from services.access.delegations import PREFIX, Delegations
from services.access.directory import Directory

NAME_ROUNDS = 50_000
NAME_DIGITS = 12
_KEY, _DELEGATION = KEY_PREFIX.encode(), PREFIX.encode()
NO_KEY = _KEY
"""Stands for a credential that looks like a key and is presented as none."""
_HOW = (
    "present a key as `Authorization: Bearer <key>`, `X-Internal-Secret: <key>` or "
    "`x-api-key: <key>`"
)


class IdentityProvider(Protocol):
    """Reads tokens of an identity provider."""

    def read(self, token: bytes) -> Principal | None:
        """Returns the principal that a token vouches for; None where none is configured.

        Raises Unauthorized for a token that is not valid.
        """


class Authentication:
    """Knows callers by what they present.

    `internal_secret` opens all but administration, `admin_secret` opens everything. Without any of
    them the graph is open to callers without a key (the ingress then binds loopback); a presented
    key counts all the same. `audit` is where this process records what callers did or were refused.
    """

    def __init__(
        self,
        internal_secret: str | None,
        admin_secret: str | None,
        directory: Directory,
        provider: IdentityProvider | None = None,
        audit: AuditTrail | None = None,
    ) -> None:
        self.directory = directory
        self.audit = audit
        self.delegations = Delegations(directory)
        self._provider = provider
        self._internal = internal_secret.encode() if internal_secret else None
        self._admin = admin_secret.encode() if admin_secret else None
        self.enforced = bool(self._internal or self._admin)
        # Names are slow to compute: before the first request.
        self._ourselves = _named(OURSELVES, self._internal)
        self._operator = _named(OPERATORS, self._admin)

    def principal(self, presented: Sequence[bytes]) -> Principal:
        """Returns the caller; of several credentials the strongest valid one.

        Raises:
            Unauthorized: none is valid, and one is demanded or looks like one of ours.
            Forbidden: the principal of a delegation was withdrawn.
            Unavailable: a key cannot be checked before the store was read once.
        """
        is_internal = is_admin = False
        for one in presented:
            # Both are always compared: the time must not depend on which one matched.
            is_admin |= self._admin is not None and hmac.compare_digest(one, self._admin)
            is_internal |= self._internal is not None and hmac.compare_digest(one, self._internal)
        if is_admin:
            return self._operator
        if is_internal:
            return self._ourselves
        refusal: Unauthorized | Forbidden | None = None
        for one in presented:
            try:
                found = self._recognised(one)
            except (Unauthorized, Forbidden) as error:
                refusal = error
            else:
                if found is not None:
                    return found
        if refusal is not None:
            raise refusal
        if not self.enforced:
            return ANYONE
        raise Unauthorized(_HOW)

    def still_valid(self, delegated: Principal) -> Principal:
        """Returns `delegated`. Raises Unauthorized where a secret was set since it was written."""
        if self.enforced and delegated.is_operator and delegated.name == ANYONE.name:
            raise Unauthorized("nobody is an operator any more: a secret was set meanwhile")
        return delegated

    def _recognised(self, presented: bytes) -> Principal | None:
        if presented == NO_KEY:
            raise Unauthorized(_HOW)
        if presented.startswith(_KEY):
            return self.directory.of_key(presented)
        if presented.startswith(_DELEGATION):
            return self.still_valid(self.delegations.read(presented))
        if not self.enforced and self.directory.revision < 0:
            return None  # nothing is demanded, and nothing is known yet
        if self._provider is not None and presented.count(b".") == 2:
            return self._provider.read(presented)
        return None


@lru_cache(maxsize=8)
def credential_name(secret: bytes) -> str:
    """Returns the name by which limits and the ledger know a secret of the environment.

    It is derived slowly, so that secrets cannot be guessed from names.
    """
    digest = hashlib.pbkdf2_hmac("sha256", secret, b"daarion credential name", NAME_ROUNDS)
    return f"key-{digest.hex()[:NAME_DIGITS]}"


def _named(principal: Principal, secret: bytes | None) -> Principal:
    """Returns the principal under the name of its secret."""
    return principal if secret is None else replace(principal, credential=credential_name(secret))
