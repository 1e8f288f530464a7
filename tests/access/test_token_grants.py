"""What the holder of a token may do, and what an operator may say about it."""

import pytest
from pydantic import ValidationError

from contracts.access.settings import IdentityProviderSettings
from contracts.errors import Forbidden, Unauthorized
from services.access.tokens import principal_of
from tests.support.access import fixed_access
from tests.support.identity_provider import section

SETTINGS = IdentityProviderSettings.model_validate(
    section(
        "/keys.json",
        roles_claim="realm_access.roles",
        operator_role="daarion-operator",
        agents_claim="https://daarion.city/agents",
        microdaos_claim="daarion.microdaos",
        grants={
            "kind": "person",
            "agents": ["agent:public-*"],
            "applications": ["llm", "agents"],
            "models": ["gpt-*"],
            "tools": ["projects.*"],
            "limits": {"requests_per_minute": 60},
        },
    )
)


def believed(**claims):
    return principal_of({"sub": "olena", **claims}, SETTINGS)


def test_grants_are_those_of_everybody_and_of_the_claims():
    found = believed(
        **{"https://daarion.city/agents": ["agent:sofia"], "daarion": {"microdaos": "microdao:7"}}
    )
    found.check(
        agent_id="agent:sofia", microdao_id="microdao:7", model="gpt-4.1", tool_id="projects.list"
    )
    found.check(agent_id="agent:public-1")
    found.check_application("llm")
    assert (found.grants.kind, found.grants.limits.requests_per_minute) == ("person", 60)
    for foreign in (
        {"agent_id": "agent:demo"},
        {"microdao_id": "microdao:8"},
        {"model": "dagi-local-8b"},
        {"tool_id": "wallet.pay"},
    ):
        with pytest.raises(Forbidden):
            found.check(**foreign)
    with pytest.raises(Forbidden):
        found.check_application("tools")


def test_a_token_without_claims_has_what_everybody_has():
    found = believed()
    assert (found.grants.agents, found.grants.microdaos) == (["agent:public-*"], [])
    for nothing in ([], "", None):
        assert believed(daarion={"microdaos": nothing}).grants == found.grants


def test_a_principal_fits_into_the_head_of_a_request():
    """Delegations hold its claims, and the ingress takes heads of 16 KB."""
    ids = [f"мікродао:{number}" for number in range(200)]
    found = believed(daarion={"microdaos": ids[:80]})
    token = fixed_access().delegations.token(found)
    assert len(token) < 10_000
    with pytest.raises(Unauthorized, match="too many"):
        believed(daarion={"microdaos": ids})


def test_one_role_means_operator():
    assert believed(realm_access={"roles": ["reader", "daarion-operator"]}).is_operator
    assert believed(realm_access={"roles": "daarion-operator"}).is_operator
    for roles in (["reader"], ["Daarion-operator"], ["daarion-operator "], []):
        assert not believed(realm_access={"roles": roles}).is_operator
    assert not believed(roles=["daarion-operator"]).is_operator
    without = SETTINGS.model_copy(update={"operator_role": None})
    assert not principal_of({"sub": "x", "realm_access": {"roles": ["None"]}}, without).is_operator


def test_names_are_readable_unique_and_nobody_elses():
    subjects = [
        "olena",
        "Olena",
        "olena ",
        "operator",
        "internal",
        "a" * 64,
        "a" * 65,
        "Олена",
        "\ud800",
        "",
    ]
    names = [believed(sub=subject).name for subject in subjects]
    assert len(set(names)) == len(subjects)
    assert names[0].startswith(f"{SETTINGS.prefix}olena:")
    assert all(name.isascii() and len(name) < 128 for name in names)
    other = SETTINGS.model_copy(update={"issuer": "https://other.example"})
    assert principal_of({"sub": "olena"}, other).name != names[0]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"jwks": "http://sso.example/certs"}, "https://"),
        ({"jwks": "https://user:pass@sso.example/certs"}, "without credentials"),
        ({"jwks": "keys.json"}, "absolute path"),
        ({"jwks": "file:///etc/keys.json"}, "absolute path"),
        ({"jwks": "https://"}, "https://"),
        ({"algorithms": ["HS256"]}, "algorithms"),
        ({"algorithms": ["none"]}, "algorithms"),
        ({"algorithms": []}, "algorithms"),
        ({"audience": []}, "audience"),
        ({"issuer": ""}, "issuer"),
        ({"role": "x"}, "role"),
    ],
)
def test_wrong_settings_are_refused(fields, says):
    with pytest.raises(ValidationError, match=says):
        IdentityProviderSettings.model_validate({**section("/keys.json"), **fields})


def test_where_keys_may_be():
    for jwks in (
        "https://sso.example/certs?p=b2c",
        "http://127.0.0.1:8080/certs",
        "/etc/keys.json",
    ):
        assert IdentityProviderSettings.model_validate(section(jwks)).jwks == jwks
