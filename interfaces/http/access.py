"""Who may call: shared secrets, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from functools import lru_cache

from contracts.errors import Forbidden, Unauthorized
from contracts.limits import ANONYMOUS

Headers = Iterable[tuple[bytes, bytes]]

NAME_ROUNDS = 50_000
NAME_DIGITS = 12


class AccessControl:
    """`internal_secret` opens all but admin routes, `admin_secret` opens those too.

    Without any secret configured, presented credentials are ignored and everything is open (the ingress binds loopback
    then). With only one of them configured, that one is demanded for what it opens; admin routes without an admin secret
    stay closed.
    """

    def __init__(self, internal_secret: str | None, admin_secret: str | None) -> None:
        self._internal = _digestible(internal_secret)
        self._admin = _digestible(admin_secret)
        self.enforced = bool(self._internal or self._admin)
        for secret in (self._internal, self._admin):
            if secret:
                credential_name(secret)  # made here, not on the way of the first request

    def check(self, headers: Headers, *, admin: bool) -> str:
        """Returns the name of the credential, `anonymous` where none is demanded.

        Raises Unauthorized without a valid credential, Forbidden when it does not open admin routes.
        """
        if not self.enforced:
            return ANONYMOUS
        is_internal = is_admin = False
        for presented in _presented(headers):
            # Both are always compared, so that the time taken tells nothing.
            is_admin |= self._admin is not None and hmac.compare_digest(presented, self._admin)
            is_internal |= self._internal is not None and hmac.compare_digest(presented, self._internal)
        if is_admin or (is_internal and not admin):
            return credential_name((self._admin if is_admin else self._internal) or b"")
        if is_internal:
            raise Forbidden("this route needs the admin secret")
        raise Unauthorized("present the secret as `X-Internal-Secret: <secret>` or `Authorization: Bearer <secret>`")


@lru_cache(maxsize=8)
def credential_name(secret: bytes) -> str:
    """Returns a name by which limits and the ledger know a secret: always the same, and too slow to make to guess it from."""
    digest = hashlib.pbkdf2_hmac("sha256", secret, b"daarion credential name", NAME_ROUNDS)
    return f"key-{digest.hex()[:NAME_DIGITS]}"


def _presented(headers: Headers) -> list[bytes]:
    found = []
    for name, value in headers:
        if name == b"x-internal-secret":
            found.append(value.strip())
        elif name == b"authorization" and value[:7].lower() == b"bearer ":
            found.append(value[7:].strip())
    return found[:2]


def _digestible(secret: str | None) -> bytes | None:
    return secret.encode() if secret else None
