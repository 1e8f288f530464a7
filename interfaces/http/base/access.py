"""Access control: shared secrets, compared in constant time, and refusal of foreign web pages."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Collection, Iterable
from functools import lru_cache

from common.loopback import is_loopback
from contracts.errors import Forbidden, MisdirectedRequest, Unauthorized
from contracts.llm.limits import ANONYMOUS

Headers = Iterable[tuple[bytes, bytes]]

NAME_ROUNDS = 50_000
NAME_DIGITS = 12
_SHOWN_CHARS = 100
_READ = frozenset({b"x-internal-secret", b"authorization", b"host", b"origin", b"sec-fetch-site"})
_FOREIGN_SITES = frozenset({b"cross-site", b"same-site"})


class AccessControl:
    """`internal_secret` opens all but admin routes, `admin_secret` opens those too.

    Without any secret, presented credentials are ignored and everything is open (the ingress then
    binds loopback). With only one of them set, that one is required for what it opens; admin routes
    stay closed without an admin secret.

    A browser's request for a page of another origin is always refused. Without a secret, `Host`
    must name loopback: the name of a hostile page may resolve to loopback (DNS rebinding), and its
    requests then have our own origin. `allowed_hosts` are further names, without a port, that are
    accepted in `Host` and in `Origin`.
    """

    def __init__(
        self,
        internal_secret: str | None,
        admin_secret: str | None,
        allowed_hosts: Collection[str] = (),
    ) -> None:
        self._internal = _digestible(internal_secret)
        self._admin = _digestible(admin_secret)
        self.enforced = bool(self._internal or self._admin)
        self._allowed_hosts = frozenset(allowed_hosts)
        for secret in (self._internal, self._admin):
            if secret:
                credential_name(secret)  # slow: computed before the first request

    def check(self, headers: Headers, *, admin: bool) -> str:
        """Returns the credential's name, or `anonymous` when no secret is configured.

        Raises:
            MisdirectedRequest: without a secret configured, for a host that is not allowed.
            Forbidden: for a page of another origin, or for an admin route without the admin secret.
            Unauthorized: without a valid credential.
        """
        host, origin, is_foreign = b"", None, False
        presented: list[bytes] = []
        for name, value in headers:
            if name not in _READ:
                continue
            if name == b"x-internal-secret":
                presented.append(value.strip())
            elif name == b"host":
                host = value
            elif name == b"origin":
                origin = value
            elif name == b"sec-fetch-site":
                is_foreign = value in _FOREIGN_SITES
            elif value[:7].lower() == b"bearer ":
                presented.append(value[7:].strip())
        if (
            host
            and not self.enforced
            and not (is_loopback_host(host) or host_name(host) in self._allowed_hosts)
        ):
            shown = re.sub(r"[^a-z0-9.:_-]", "?", host_name(host)[:_SHOWN_CHARS])
            raise MisdirectedRequest(
                f"host `{shown}` is not allowed while no secret is set: use localhost or "
                "127.0.0.1, add the host to DAARION_ALLOWED_HOSTS, or set DAARION_INTERNAL_SECRET"
            )
        if is_foreign if origin is None else not self._is_own(origin, host):
            raise Forbidden(
                "requests of pages of another origin are refused: if a proxy in front rewrites "
                "`Host`, or a desktop program sends this `Origin`, add its host to "
                "DAARION_ALLOWED_HOSTS"
            )
        return self._credential(presented[:2], admin=admin) if self.enforced else ANONYMOUS

    def _is_own(self, origin: bytes, host: bytes) -> bool:
        """Whether an `Origin` is that of `host` or an allowed one; `null` never is."""
        place = origin.partition(b"://")[2]
        return place.lower() == host.lower() != b"" or host_name(place) in self._allowed_hosts

    def _credential(self, found: list[bytes], *, admin: bool) -> str:
        is_internal = is_admin = False
        for presented in found:
            # Both are always compared: the time must not depend on which one matched.
            is_admin |= self._admin is not None and hmac.compare_digest(presented, self._admin)
            is_internal |= self._internal is not None and hmac.compare_digest(
                presented, self._internal
            )
        if is_admin or (is_internal and not admin):
            return credential_name((self._admin if is_admin else self._internal) or b"")
        if is_internal:
            raise Forbidden("this route needs the admin secret")
        raise Unauthorized(
            "present the secret as `X-Internal-Secret: <secret>` or "
            "`Authorization: Bearer <secret>`"
        )


def header(headers: Headers, wanted: bytes) -> bytes:
    """Returns the first header of that name (in lower case), or nothing."""
    for name, value in headers:
        if name == wanted:
            return value
    return b""


@lru_cache(maxsize=8)
def credential_name(secret: bytes) -> str:
    """Returns the name by which limits and the ledger know a secret.

    It is derived slowly, so that secrets cannot be guessed from names.
    """
    digest = hashlib.pbkdf2_hmac("sha256", secret, b"daarion credential name", NAME_ROUNDS)
    return f"key-{digest.hex()[:NAME_DIGITS]}"


@lru_cache(maxsize=256)
def is_loopback_host(host: bytes) -> bool:
    """Whether a `Host` names loopback: `localhost`, 127.0.0.0/8 or ::1, with any port."""
    return is_loopback(host_name(host))


def host_name(host: bytes) -> str:
    """Returns a `Host` in lower case, without port and without the brackets of IPv6."""
    text = host.decode("latin-1").lower()
    return text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]


def _digestible(secret: str | None) -> bytes | None:
    return secret.encode() if secret else None
