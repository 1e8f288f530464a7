"""Delegations: our own applications call each other for a principal, by short-lived signed tokens.

A token names the principal and, where it acts for one, the agent and the microDAO. What the
principal may do is looked up where the token arrives, so a withdrawn principal's tokens end, too.
Only which applications it may use does not count there: it has not called them itself.
"""

from __future__ import annotations

import time
from dataclasses import replace

import jwt
import orjson
from cachetools import LRUCache

from contracts.access.principals import Principal, acting
from contracts.errors import Unauthorized
from services.access.directory import Directory

PREFIX = "dd_"
LIFE_S = 300.0
RENEW_BEFORE_S = 120.0
ALGORITHM = "HS256"
ISSUER = "daarion-serve"
MAX_REMEMBERED = 4_096


class Delegations:
    """Writes and reads tokens, with a memory of both.

    Those of an `audience` are read for the same audience alone.
    """

    def __init__(self, directory: Directory, audience: str | None = None) -> None:
        self._directory = directory
        self._audience = audience
        self._written: LRUCache[tuple[bytes, float], tuple[str, float]] = LRUCache(MAX_REMEMBERED)
        self._read: LRUCache[bytes, tuple[Principal, float, int]] = LRUCache(MAX_REMEMBERED)

    def current(self) -> dict[str, str]:
        """Returns the header of a call that the present task makes. Raises Unavailable."""
        return self.headers(acting())

    def headers(self, principal: Principal) -> dict[str, str]:
        """Returns the header of a call that is made for a principal. Raises Unavailable."""
        return {"Authorization": f"Bearer {self.token(principal)}"}

    def token(self, principal: Principal, life_s: float = LIFE_S) -> str:
        """Returns a token that lives for `life_s`, less up to two minutes.

        Raises Unavailable before the signing key was read once.
        """
        now = time.time()
        claims = principal.claims()
        key = orjson.dumps(claims), life_s
        token, ends = self._written.get(key, ("", 0.0))
        if ends - now < life_s - RENEW_BEFORE_S:
            ends = now + life_s
            claims |= {"iss": ISSUER, "exp": int(ends)}
            if self._audience is not None:
                claims["aud"] = self._audience
            token = PREFIX + jwt.encode(claims, self._directory.known().signing_key, ALGORITHM)
            self._written[key] = token, ends
        return token

    def read(self, token: bytes) -> Principal:
        """Returns the principal of a token.

        Raises:
            Unauthorized: it is not ours, or has ended.
            Forbidden: the principal was withdrawn, or may no longer act so.
            Unavailable: before the first read of the store.
        """
        found, ends, revision = self._read.get(token, (None, 0.0, -1))
        if found is not None and revision == self._directory.revision and ends > time.time():
            return found
        try:
            claims = jwt.decode(
                token[len(PREFIX) :],
                self._directory.known().signing_key,
                algorithms=[ALGORITHM],
                audience=self._audience,
                issuer=ISSUER,
                options={"require": ["exp", "sub"]},
            )
        except jwt.PyJWTError:
            raise Unauthorized("this delegation is not valid, or has ended") from None
        found = self._directory.claimed(claims)
        # It came from an application that the principal may use: a run needs others as well.
        grants = found.grants.model_copy(update={"applications": None})
        found = replace(found, grants=grants)
        self._read[token] = found, float(claims["exp"]), self._directory.revision
        return found
