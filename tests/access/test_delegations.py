"""Calls between our own applications: for whom they are made, and what counts where they arrive."""

import pytest

from contracts.access.keys import Snapshot
from contracts.access.principals import Grants
from contracts.errors import Forbidden, Unauthorized
from contracts.identity import Tenant
from services.access.delegations import Delegations
from services.access.directory import Directory
from tests.support.access import SIGNING_KEY, fixed_access
from tests.support.events import RecordedEvents

SOFIA = Grants(
    kind="agent",
    agents=["agent:sofia", "agent:demo"],
    microdaos=["microdao:7"],
    applications=["agents"],
    models=["gpt-*"],
)
KEY = b"dk_the key of the bot of Sofia in this test"
TENANT = Tenant(microdao_id="microdao:7", agent_id="agent:sofia")


@pytest.fixture
def access():
    return fixed_access("s3cret", principals={"sofia-bot": SOFIA}, keys={KEY.decode(): "sofia-bot"})


def delegated(access, principal):
    return access.principal([access.delegations.token(principal).encode()])


def test_applications_count_for_direct_calls_alone_and_everything_else_goes_along(access):
    direct = access.principal([KEY])
    direct.check_application("agents")
    with pytest.raises(Forbidden, match="may not use the application `llm`"):
        direct.check_application("llm")
    for found in (delegated(access, direct), delegated(access, direct.narrowed(TENANT))):
        found.check_application("llm")
        found.check(agent_id="agent:sofia", microdao_id="microdao:7", model="gpt-4.1-mini")
        for foreign in (
            {"agent_id": "agent:foreign"},
            {"microdao_id": "microdao:8"},
            {"model": "dagi-local-8b"},
        ):
            with pytest.raises(Forbidden):
                found.check(**foreign)


def test_a_run_reaches_one_agent_in_one_microdao(access):
    found = delegated(access, access.principal([KEY]).narrowed(TENANT))
    assert (found.name, found.tenant) == ("sofia-bot", TENANT)
    with pytest.raises(Forbidden, match="act as `agent:demo`"):
        found.check(agent_id="agent:demo")


def test_a_changed_forged_or_ended_token_opens_nothing(access):
    principal = access.principal([KEY])
    token = access.delegations.token(principal).encode()
    forger = Directory(None, RecordedEvents())
    forger.take(Snapshot(1, {"sofia-bot": SOFIA}, {}, b"guessed".ljust(64), {}))
    for wrong in (
        token[:-2],
        token + b"x",
        Delegations(forger).token(principal).encode(),
        access.delegations.token(principal, life_s=-1).encode(),
    ):
        with pytest.raises(Unauthorized, match="delegation"):
            access.principal([wrong])


def test_a_token_ends_with_its_principal_and_follows_its_grants(access):
    principal = access.principal([KEY]).narrowed(TENANT)
    token = access.delegations.token(principal).encode()
    assert access.principal([token]).grants.models == ["gpt-*"]
    changed = SOFIA.model_copy(update={"models": ["dagi-*"]})
    access.directory.take(Snapshot(2, {"sofia-bot": changed}, {}, SIGNING_KEY, {}))
    assert access.principal([token]).grants.models == ["dagi-*"]
    elsewhere = SOFIA.model_copy(update={"microdaos": ["microdao:8"]})
    access.directory.take(Snapshot(3, {"sofia-bot": elsewhere}, {}, SIGNING_KEY, {}))
    with pytest.raises(Forbidden, match="act in `microdao:7`"):
        access.principal([token])
    access.directory.take(Snapshot(4, {}, {}, SIGNING_KEY, {}))
    with pytest.raises(Forbidden, match="withdrawn"):
        access.principal([token])


def test_an_operator_acts_for_an_agent_as_less_than_an_operator(access):
    operator = fixed_access(None, "admin").principal([b"admin"])
    found = delegated(access, operator.narrowed(TENANT))
    assert (found.name, found.is_operator) == ("operator", False)
    with pytest.raises(Forbidden):
        found.check(microdao_id="microdao:8")
