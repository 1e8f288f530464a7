"""An identity provider for tests: keys of its own, tokens, and a key set on a real HTTP server."""

from __future__ import annotations

import json
import time
from contextlib import asynccontextmanager
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from contracts.access.keys import Snapshot
from services.access.directory import Directory
from tests.support.access import APPLIED, SIGNING_KEY
from tests.support.events import RecordedEvents
from tests.support.uvicorn_server import served

ISSUER, AUDIENCE = "https://sso.example/realms/daarion", "daarion"
KEYS = {
    "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "PS512": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
"""Private keys by the algorithm that they sign with."""


class IdentityProvider:
    """Signs tokens with `KEYS`, whose names are the algorithms until `rotate`. `answer` replaces
    the key set by another status and body.
    """

    def __init__(self) -> None:
        self.suffix = ""
        self.answer: tuple[int, bytes] | None = None
        self.reads = 0

    def rotate(self) -> None:
        """Gives all keys other names."""
        self.suffix += "'"

    def key_set(self, **members: Any) -> bytes:
        """Returns the public keys; `members` are added to each, null ones are removed."""
        keys = []
        for name, private in KEYS.items():
            key = jwt.get_algorithm_by_name(name).to_jwk(private.public_key(), as_dict=True)
            key |= {"kid": name + self.suffix, "use": "sig", "alg": name, **members}
            keys.append({member: value for member, value in key.items() if value is not None})
        return json.dumps({"keys": keys}).encode()

    def token(self, algorithm: str = "RS256", head: dict[str, Any] | None = None, **claims: Any):
        """Returns a token; null claims are left out, and so are null members of `head`."""
        now = int(time.time())
        given = {"iss": ISSUER, "aud": AUDIENCE, "sub": "olena", "exp": now + 600, **claims}
        given = {name: value for name, value in given.items() if value is not None}
        headers = {"kid": algorithm + self.suffix, **(head or {})}
        headers = {name: value for name, value in headers.items() if value is not None}
        return jwt.encode(given, KEYS[algorithm], algorithm, headers=headers).encode()

    @asynccontextmanager
    async def serving(self):
        """Yields the URL of the key set."""

        async def app(scope, receive, send):
            self.reads += 1
            status, body = self.answer or (200, self.key_set())
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": body})

        async with served(app) as url:
            yield f"{url}/certs"


def section(jwks: str, **fields: Any) -> dict[str, Any]:
    """Returns the section of `access.yaml` for this provider."""
    return {"issuer": ISSUER, "audience": [AUDIENCE], "jwks": jwks, **fields}


def directory_with(settings: dict[str, Any] | None) -> Directory:
    """Returns a directory that knows the section alone."""
    directory = Directory(None, RecordedEvents())
    change(directory, settings)
    return directory


def change(directory: Directory, settings: dict[str, Any] | None) -> None:
    """Gives the directory another section, as a reload does."""
    known = {} if settings is None else {"identity_provider": settings}
    directory.take(Snapshot(directory.revision + 1, {}, {}, SIGNING_KEY, APPLIED | known))
