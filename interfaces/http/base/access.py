"""Access control at the door: who calls, and refusal of foreign web pages."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

from common.loopback import is_loopback
from contracts.access.keys import CREDENTIAL_HEADERS, KEY_HEADERS
from contracts.access.principals import Principal
from contracts.errors import (
    CredentialExpired,
    Forbidden,
    MisdirectedRequest,
    RateLimited,
    Unauthorized,
)
from services.access.authentication import NO_KEY, Authentication

Headers = Iterable[tuple[bytes, bytes]]

MAX_CREDENTIALS = 3
REFUSED_EVERY_S = 2.0
REFUSED_BURST_S = 40.0
"""Refused credentials are answered 401 twenty times at once, and then every two seconds."""
_SHOWN_CHARS = 100
_KEY_HEADERS = frozenset(name.encode() for name in KEY_HEADERS)
_CREDENTIAL_HEADERS = frozenset(name.encode() for name in CREDENTIAL_HEADERS)
_READ = _CREDENTIAL_HEADERS | {b"host", b"origin", b"sec-fetch-site"}
_FOREIGN_SITES = frozenset({b"cross-site", b"same-site"})


class AccessControl:
    """Lets callers in, and says who they are.

    A browser's request for a page of another origin is always refused. While no secret is demanded,
    `Host` must name loopback: the name of a hostile page may resolve to loopback (DNS rebinding),
    and its requests then have our own origin. `allowed_hosts` are further names, without a port,
    that are accepted in `Host` and in `Origin`.
    """

    def __init__(self, authentication: Authentication, allowed_hosts: Collection[str] = ()) -> None:
        self._authentication = authentication
        self.audit = authentication.audit
        self._allowed_hosts = frozenset(allowed_hosts)
        self._refused_until = 0.0

    def check(self, headers: Headers) -> Principal:
        """Returns who calls.

        Raises:
            MisdirectedRequest: without a secret configured, for a host that is not allowed.
            Forbidden: for a page of another origin, or for a withdrawn principal.
            Unauthorized: without a valid credential.
            RateLimited: in place of it, after a burst of refused credentials.
            Unavailable: keys cannot be checked yet.
        """
        host, origin, is_foreign = b"", None, False
        presented: list[bytes] = []
        for name, value in headers:
            if name not in _READ:
                continue
            if name in _KEY_HEADERS:
                presented.append(value.strip())
            elif name == b"host":
                host = value
            elif name == b"origin":
                origin = value
            elif name == b"sec-fetch-site":
                is_foreign = value in _FOREIGN_SITES
            else:
                presented += _authorization(value)
        if (
            host
            and not self._authentication.enforced
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
        return self._authenticated(presented[:MAX_CREDENTIALS])

    def _authenticated(self, presented: Sequence[bytes]) -> Principal:
        try:
            return self._authentication.principal(presented)
        except CredentialExpired:
            raise  # its client waits for this answer, to get a new one
        except Unauthorized:
            if not presented:
                raise
            # All callers together: docs/decisions/164.
            now = time.monotonic()
            wait_s = self._refused_until + REFUSED_EVERY_S - REFUSED_BURST_S - now
            if wait_s > 0:
                raise RateLimited(
                    "too many credentials were refused lately; a valid one is let in at any time",
                    retry_after_s=wait_s,
                ) from None
            self._refused_until = max(self._refused_until, now) + REFUSED_EVERY_S
            raise

    def _is_own(self, origin: bytes, host: bytes) -> bool:
        """Whether an `Origin` is that of `host` or an allowed one; `null` never is."""
        place = origin.partition(b"://")[2]
        return place.lower() == host.lower() != b"" or host_name(place) in self._allowed_hosts


def header(headers: Headers, wanted: bytes) -> bytes:
    """Returns the first header of that name (in lower case), or nothing."""
    for name, value in headers:
        if name == wanted:
            return value
    return b""


def _authorization(value: bytes) -> list[bytes]:
    if value[:7].lower() == b"bearer ":
        return [value[7:].strip()]
    return [NO_KEY] if value.startswith(NO_KEY) else []  # `Bearer` is missing


def presents_credential(headers: Headers) -> bool:
    """Whether a request presents a credential, valid or not."""
    return any(name in _CREDENTIAL_HEADERS for name, _ in headers)


@lru_cache(maxsize=256)
def is_loopback_host(host: bytes) -> bool:
    """Whether a `Host` names loopback: `localhost`, 127.0.0.0/8 or ::1, with any port."""
    return is_loopback(host_name(host))


def host_name(host: bytes) -> str:
    """Returns a `Host` in lower case, without port and without the brackets of IPv6."""
    text = host.decode("latin-1").lower()
    return text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]
