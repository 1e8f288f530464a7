"""Delegations: what one application may tell another about who calls."""

from __future__ import annotations

import jwt
import pytest

from contracts.access.principals import ANYONE, OURSELVES, Grants
from contracts.errors import Forbidden, Unauthorized
from contracts.identity import Tenant
from services.access.authentication import Authentication
from tests.support.access import SIGNING_KEY, fixed_access

OWN = Tenant(agent_id="agent:own", microdao_id="microdao:own")
OTHER = Tenant(agent_id="agent:own", microdao_id="microdao:other")
GRANTS = Grants(agents=["agent:*"], microdaos=["microdao:own"], models=["one"])


def presented(access: Authentication, token: str):
    return access.principal([token.encode()])


def test_a_delegation_arrives_as_the_principal_in_its_tenant():
    access = fixed_access("internal", principals={"one": GRANTS})
    one = access.directory.named("one").narrowed(OWN)
    assert presented(access, access.delegations.token(one)) == one
    assert "agent:else" not in one.agents
    assert "two" not in one.models  # as of the principal itself
    with pytest.raises(Forbidden):
        access.directory.named("one").narrowed(OTHER)


def test_applications_are_granted_for_calls_of_ones_own():
    access = fixed_access(
        "internal", principals={"one": GRANTS.model_copy(update={"applications": ["workspace"]})}
    )
    one = access.directory.named("one")
    with pytest.raises(Forbidden):
        one.check_application("llm")
    presented(access, access.delegations.token(one)).check_application("llm")


def test_two_credentials_of_one_name_have_two_tokens():
    access = fixed_access("internal", "admin")
    by_secret = access.principal([b"internal"])
    assert by_secret.credential != OURSELVES.credential
    tokens = [access.delegations.token(principal) for principal in (OURSELVES, by_secret)]
    found = [presented(access, token) for token in tokens]
    assert [one.credential for one in found] == [OURSELVES.credential, by_secret.credential]


def test_an_operator_that_acts_for_an_agent_is_none():
    access = fixed_access(None, "admin")
    operator = access.principal([b"admin"])
    assert operator.is_operator
    assert not presented(access, access.delegations.token(operator.narrowed(OWN))).is_operator


def test_nobody_stays_an_operator_after_a_secret_was_set():
    open_access, closed = fixed_access(), fixed_access("internal")
    token = open_access.delegations.token(ANYONE)
    assert presented(open_access, token).is_operator
    with pytest.raises(Unauthorized):
        presented(closed, token)
    acting = presented(closed, open_access.delegations.token(ANYONE.narrowed(OWN)))
    assert "microdao:other" not in acting.microdaos


def test_a_withdrawn_principal_or_tenant_ends_its_delegations():
    access = fixed_access("internal", principals={"one": GRANTS})
    token = access.delegations.token(access.directory.named("one").narrowed(OWN))
    assert presented(access, token)
    moved = fixed_access("internal", principals={"one": Grants(agents=["agent:*"])})
    gone = fixed_access("internal", principals={})
    for later in (moved, gone):
        with pytest.raises(Forbidden):
            presented(later, token)


@pytest.mark.parametrize(
    ("claims", "key", "algorithm"),
    [
        ({"sub": "one", "iss": "daarion-serve", "exp": 1}, SIGNING_KEY, "HS256"),
        ({"sub": "one", "iss": "another", "exp": 2**40}, SIGNING_KEY, "HS256"),
        ({"sub": "one", "iss": "daarion-serve"}, SIGNING_KEY, "HS256"),
        ({"iss": "daarion-serve", "exp": 2**40}, SIGNING_KEY, "HS256"),
        ({"sub": "one", "iss": "daarion-serve", "exp": 2**40}, b"x" * 64, "HS256"),
        ({"sub": "one", "iss": "daarion-serve", "exp": 2**40}, None, "none"),
        ({"sub": "one", "iss": "daarion-serve", "exp": 2**40, "aud": "a"}, SIGNING_KEY, "HS256"),
    ],
)
def test_what_we_did_not_sign_for_now_is_refused(claims, key, algorithm):
    access = fixed_access("internal", principals={"one": GRANTS})
    token = "dd_" + jwt.encode(claims, key, algorithm)
    with pytest.raises(Unauthorized):
        presented(access, token)


@pytest.mark.parametrize("token", ["dd_", "dd_x", "dd_a.b.c", "dd_" + "é" * 9, "dk_", "dk_é"])
def test_garbage_is_refused(token):
    with pytest.raises(Unauthorized):
        presented(fixed_access(), token)
