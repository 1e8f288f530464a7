"""Who may call: shared secrets, compared in constant time."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from contracts.errors import Forbidden, Unauthorized

Headers = Iterable[tuple[bytes, bytes]]


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

    def check(self, headers: Headers, *, admin: bool) -> None:
        """Raises Unauthorized without a valid credential, Forbidden when it does not open admin routes."""
        if not self.enforced:
            return
        is_internal = is_admin = False
        for presented in _presented(headers):
            # Both are always compared, so that the time taken tells nothing.
            is_admin |= self._admin is not None and hmac.compare_digest(presented, self._admin)
            is_internal |= self._internal is not None and hmac.compare_digest(presented, self._internal)
        if is_admin or (is_internal and not admin):
            return
        if is_internal:
            raise Forbidden("this route needs the admin secret")
        raise Unauthorized("present the secret as `X-Internal-Secret: <secret>` or `Authorization: Bearer <secret>`")


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
