"""Tokens of an identity provider: which are believed, and what their holders may do."""

import base64
import hashlib
import hmac
import json
import time
from functools import partial

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from backends.access.jwks import read_keys
from configs.proxies import no_proxy
from contracts.errors import CredentialExpired, Forbidden, Unauthorized, Unavailable
from services.access.authentication import Authentication
from services.access.tokens import LEEWAY_S, MAX_TOKEN_BYTES, Tokens
from tests.support.identity_provider import (
    AUDIENCE,
    ISSUER,
    KEYS,
    IdentityProvider,
    change,
    directory_with,
    section,
)

ROLES = {"roles_claim": "realm_access.roles", "operator_role": "daarion-operator"}
PROVIDER = IdentityProvider()


@pytest.fixture
async def known(tmp_path):
    """Returns what reads tokens under the given settings, with the keys of the provider."""

    async def known(key_set=None, **fields):
        file = tmp_path / "keys.json"
        file.write_bytes(key_set or PROVIDER.key_set())
        directory = directory_with(section(str(file), **fields))
        tokens = Tokens(directory, partial(read_keys, no_proxy))
        await tokens.refresh()
        return tokens

    return known


@pytest.mark.parametrize("algorithm", KEYS)
async def test_a_token_is_believed_under_each_kind_of_key(known, algorithm):
    tokens = await known()
    found = tokens.read(PROVIDER.token(algorithm, agents=["agent:sofia"]))
    assert (found.grants.agents, found.issued, found.is_operator) == (["agent:sofia"], True, False)
    assert tokens.read(PROVIDER.token(algorithm, aud=["other", AUDIENCE])) is not None


@pytest.mark.parametrize(
    ("claims", "says"),
    [
        ({"iss": "https://sso.example/realms/other"}, "another issuer"),
        ({"iss": ISSUER + "/"}, "another issuer"),
        ({"iss": None}, "lacks one of the claims"),
        ({"aud": "billing"}, "another audience"),
        ({"aud": ["billing", AUDIENCE + "x"]}, "another audience"),
        ({"aud": None}, "lacks one of the claims"),
        ({"aud": {AUDIENCE: True}}, "another audience"),
        ({"exp": None}, "lacks one of the claims"),
        ({"exp": "soon"}, "its form"),
        ({"exp": [1]}, "its form"),
        ({"sub": None}, "lacks one of the claims"),
        ({"sub": 7}, "its form"),
        ({"nbf": 9_999_999_999}, "not valid yet"),
        ({"iat": 9_999_999_999}, "not valid yet"),
        ({"agents": 7}, "`agents`"),
        ({"agents": {"agent:sofia": True}}, "`agents`"),
        ({"agents": ["agent:sofia", 7]}, "`agents`"),
        ({"agents": ["agent:sofia", ""]}, "`agents`"),
        ({"agents": ["agent:a\n"]}, "`agents`"),
        ({"agents": "*"}, "without patterns"),
        ({"agents": ["agent:*"]}, "without patterns"),
        ({"microdaos": ["microdao:7", "*"]}, "`microdaos`"),
        ({"realm_access": "daarion-operator"}, "`realm_access.roles`"),
        ({"realm_access": ["roles"]}, "`realm_access.roles`"),
        ({"realm_access": {"roles": {"daarion-operator": 1}}}, "`realm_access.roles`"),
    ],
    ids=str,
)
async def test_a_token_with_a_wrong_claim_is_refused_and_the_claim_is_named(known, claims, says):
    tokens = await known(**ROLES)
    with pytest.raises(Unauthorized, match=says) as refused:
        tokens.read(PROVIDER.token(**claims))
    assert not isinstance(refused.value, CredentialExpired)


async def test_an_expired_token_is_refused_as_such_and_clocks_may_differ_a_little(known):
    tokens, now = await known(), int(time.time())
    with pytest.raises(CredentialExpired):
        tokens.read(PROVIDER.token(exp=now - LEEWAY_S - 1))
    assert tokens.read(PROVIDER.token(exp=now - LEEWAY_S // 2)) is not None
    assert tokens.read(PROVIDER.token(nbf=now + LEEWAY_S // 2)) is not None


async def test_a_token_that_was_believed_ends_all_the_same(known):
    tokens, token = await known(), PROVIDER.token()
    assert tokens.read(token) is tokens.read(token)  # remembered
    now = time.time()
    past = PROVIDER.token(exp=int(now) - LEEWAY_S - 1)
    tokens._remembered[past] = tokens.read(token), now
    with pytest.raises(CredentialExpired):
        tokens.read(past)


def forged(head, signature):
    """Returns a token with claims as they should be."""

    def part(value):
        return base64.urlsafe_b64encode(value).rstrip(b"=")

    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "eve", "exp": int(time.time()) + 600}
    body = part(json.dumps(head).encode()) + b"." + part(json.dumps(claims).encode())
    return body + b"." + part(signature(body))


def public(encoding, form):
    return KEYS["RS256"].public_key().public_bytes(encoding, form)


@pytest.mark.parametrize(
    "secret",
    [
        public(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        public(Encoding.PEM, PublicFormat.PKCS1),
        public(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        b"",
    ],
)
async def test_a_public_key_signs_nothing(known, secret):
    """HS256 with the public key as its secret: the confusion of algorithms."""
    tokens = await known()
    head = {"alg": "HS256", "kid": "RS256"}
    token = forged(head, lambda body: hmac.digest(secret, body, hashlib.sha256))
    with pytest.raises(Unauthorized, match="not valid"):
        tokens.read(token)


async def test_a_key_that_the_token_brings_or_names_itself_is_not_looked_at(known):
    tokens, own = await known(), ed25519.Ed25519PrivateKey.generate()
    jwk = jwt.get_algorithm_by_name("EdDSA").to_jwk(own.public_key(), as_dict=True)
    for kid in ("EdDSA", "RS256", "other", None):
        head = {"alg": "EdDSA", "kid": kid, "jwk": jwk, "jku": "https://evil.example/certs"}
        head = {name: value for name, value in head.items() if value is not None}
        with pytest.raises(Unauthorized):
            tokens.read(forged(head, own.sign))


@pytest.mark.parametrize("algorithm", ["none", "None", "", None, ["none"], 7, "RS512", "ES256"])
async def test_the_algorithm_is_that_of_the_key(known, algorithm):
    tokens = await known()
    for signature in (b"", b"x" * 256):
        token = forged({"alg": algorithm, "kid": "RS256"}, lambda _, made=signature: made)
        with pytest.raises(Unauthorized, match="not valid"):
            tokens.read(token)


async def test_an_algorithm_that_the_settings_leave_out_is_refused(known):
    tokens = await known(algorithms=["ES256", "ES384"])
    assert tokens.read(PROVIDER.token("ES256")) is not None
    with pytest.raises(Unauthorized, match="algorithm is not allowed"):
        tokens.read(PROVIDER.token("RS256"))


def signed_by_a_weak_key(key):
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "eve", "exp": int(time.time()) + 600}
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        return jwt.encode(claims, key, "RS256", headers={"kid": "weak"}).encode()


async def test_shared_weak_and_encryption_keys_of_a_key_set_verify_nothing(known):
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    as_jwk = jwt.get_algorithm_by_name("RS256").to_jwk(weak.public_key(), as_dict=True)
    shared = {
        "kty": "oct",
        "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA==",
        "kid": "shared",
    }
    key_set = json.loads(PROVIDER.key_set(use="enc"))
    key_set["keys"] += [shared, {**as_jwk, "kid": "weak"}, {"kty": "RSA"}, {}]
    tokens = await known(json.dumps(key_set).encode())
    secret = base64.urlsafe_b64decode(shared["k"])
    for token in (
        PROVIDER.token("RS256"),
        jwt.encode({"sub": "eve"}, secret, "HS256", headers={"kid": "shared"}).encode(),
        signed_by_a_weak_key(weak),
    ):
        with pytest.raises(Unauthorized):
            tokens.read(token)


async def test_a_signature_of_another_key_is_refused(known):
    tokens = await known()
    token = PROVIDER.token("RS256")
    body, _, signature = token.rpartition(b".")
    other = jwt.encode({"sub": "olena"}, KEYS["PS512"], "RS256").encode().rpartition(b".")[2]
    for wrong in (body + b".", body + b"." + other, body + b"." + signature[:-4], token + b"="):
        with pytest.raises(Unauthorized, match="not valid"):
            tokens.read(wrong)
    head, _, rest = body.partition(b".")
    for moved in (b"e30." + rest + b"." + signature, head + b".e30." + signature):
        with pytest.raises(Unauthorized):
            tokens.read(moved)


@given(st.binary(max_size=60), st.binary(max_size=60), st.binary(max_size=60))
def test_no_bytes_break_the_check(first, second, third):
    tokens = Tokens(directory_with(section("/keys.json")), None)
    tokens._followed()
    tokens._wanted, tokens._tried_at = False, time.monotonic()
    tokens._keys = {"None": jwt.PyJWK(json.loads(PROVIDER.key_set())["keys"][0])}
    encoded = b".".join(map(base64.urlsafe_b64encode, (first, second, third)))
    for token in (b".".join((first, second, third)), encoded, b"eyJhbGciOiJSUzI1NiJ9." + encoded):
        with pytest.raises(Unauthorized):
            tokens.read(token)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
NAMES = st.sampled_from(["agents", "microdaos", "realm_access", "sub", "exp", "nbf", "iss", "aud"])


@given(
    st.dictionaries(NAMES, JSON_VALUES),
    st.dictionaries(st.sampled_from(["crit", "b64", "typ"]), JSON_VALUES),
)
def test_no_signed_claims_break_the_check(claims, head):
    tokens = Tokens(directory_with(section("/keys.json", **ROLES)), None)
    tokens._followed()
    tokens._keys = {"EdDSA": jwt.PyJWK(json.loads(PROVIDER.key_set())["keys"][-1])}
    body = {"iss": ISSUER, "aud": AUDIENCE, "sub": "olena", "exp": time.time() + 600, **claims}
    token = forged_with(body, {"alg": "EdDSA", "kid": "EdDSA", **head})
    try:
        found = tokens.read(token)
    except Unauthorized:
        return
    assert found.name.startswith("jwt:")
    assert not found.is_operator
    assert not found.agents.all


def forged_with(claims, head):
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (head, claims)
    ]
    body = b".".join(parts)
    return body + b"." + base64.urlsafe_b64encode(KEYS["EdDSA"].sign(body)).rstrip(b"=")


async def test_a_long_token_is_not_even_verified(known):
    tokens = await known()
    with pytest.raises(Unauthorized, match=f"more than {MAX_TOKEN_BYTES} bytes"):
        tokens.read(PROVIDER.token(padding="x" * MAX_TOKEN_BYTES))


async def test_a_caller_with_a_token_is_known_beside_those_with_keys(known):
    tokens = await known()
    access = Authentication("s3cret", None, tokens._directory, tokens)
    token = PROVIDER.token(agents="agent:sofia")
    assert access.principal([token]).grants.agents == ["agent:sofia"]
    assert access.principal([b"dk_wrong", token]).issued
    assert access.principal([token, b"s3cret"]).name == "internal"
    with pytest.raises(Unauthorized, match="not valid"):
        access.principal([token[:-4]])
    change(tokens._directory, None)
    with pytest.raises(Unauthorized, match="present a key"):
        access.principal([token])


async def test_a_delegation_outlives_the_token_and_carries_its_grants(known):
    """A run works to its end for whoever began it."""
    tokens = await known(grants={"models": ["gpt-*"]})
    access = Authentication("s3cret", None, tokens._directory, tokens)
    caller = access.principal([PROVIDER.token(agents="agent:sofia", microdaos="microdao:7")])
    restored = access.directory.claimed(json.loads(json.dumps(caller.claims())))
    assert restored == caller
    found = access.principal([access.delegations.token(restored).encode()])
    assert (found.name, found.issued) == (caller.name, True)
    found.check(agent_id="agent:sofia", microdao_id="microdao:7", model="gpt-4.1")
    with pytest.raises(Forbidden):
        found.check(microdao_id="microdao:8")
    change(tokens._directory, section("/keys.json", issuer="https://another.example"))
    with pytest.raises(Forbidden, match="withdrawn"):
        access.directory.claimed(caller.claims())
    change(tokens._directory, None)
    with pytest.raises(Forbidden, match="withdrawn"):
        access.directory.claimed(caller.claims())


async def test_nothing_is_said_of_a_token_before_principals_are_known():
    directory = directory_with(section("/keys.json"))
    directory._snapshot = None
    with pytest.raises(Unavailable):
        Tokens(directory, None).read(PROVIDER.token())
