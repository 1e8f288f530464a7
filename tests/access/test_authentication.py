"""Who presents a credential, and what counts before and beside the store of keys."""

import pytest
from starlette.requests import Request

from contracts.access.keys import Snapshot
from contracts.access.principals import Grants, Principal
from contracts.errors import Forbidden, InvalidRequest, Unauthorized, Unavailable
from interfaces.http.base.identity import call_metadata_of
from services.access.authentication import Authentication
from services.access.directory import Directory
from tests.support.access import APPLIED, SIGNING_KEY, access_control, fixed_access
from tests.support.events import RecordedEvents

KEY = "dk_the key of the bot of Sofia in these tests"
SOFIA = Grants(agents=["agent:sofia"], microdaos=["microdao:7"])
KNOWN = {"principals": {"sofia-bot": SOFIA}, "keys": {KEY: "sofia-bot"}}


def test_while_no_secret_is_set_a_key_still_bounds_its_caller():
    access = fixed_access(**KNOWN)
    for presented in ([], [b"any text, as clients of OpenAI send it"]):
        found = access.principal(presented)
        assert (found.name, found.is_operator) == ("anonymous", True)
    assert access.principal([KEY.encode()]).grants == SOFIA
    with pytest.raises(Unauthorized, match="unknown, revoked or expired"):
        access.principal([b"dk_guessed"])


@pytest.mark.parametrize("value", [KEY, "dk_", "dk_guessed"])
def test_a_key_without_its_scheme_is_not_taken_for_no_key(value):
    access = access_control(**KNOWN)
    with pytest.raises(Unauthorized, match="`Authorization: Bearer <key>`"):
        access.check([(b"authorization", value.encode())])
    both = [(b"authorization", value.encode()), (b"x-api-key", KEY.encode())]
    assert access.check(both).name == "sofia-bot"
    assert access.check([(b"authorization", b"Basic b2xlbmE6eA==")]).name == "anonymous"


def test_with_one_secret_set_every_caller_needs_a_credential():
    for access in (fixed_access("inside", None, **KNOWN), fixed_access(None, "above", **KNOWN)):
        for presented in ([], [b"guessed"], [b"dk_guessed"]):
            with pytest.raises(Unauthorized):
                access.principal(presented)
        assert access.principal([KEY.encode()]).name == "sofia-bot"


def test_of_several_credentials_the_strongest_valid_one_counts():
    access = fixed_access("inside", "above", **KNOWN)
    key, wrong = KEY.encode(), b"dk_guessed"
    for presented, name in (
        ([key, b"inside", b"above"], "operator"),
        ([wrong, key, b"inside"], "internal"),
        ([wrong, key], "sofia-bot"),
    ):
        assert access.principal(presented).name == name


def test_before_the_store_was_read_any_text_is_ignored_while_no_secret_is_set():
    access = Authentication(None, None, Directory(None, RecordedEvents()), Mute())
    assert access.principal([b"sk.like.that"]).name == "anonymous"


class Mute:
    """An identity provider that nothing may be asked of."""

    def read(self, token):
        raise AssertionError(token)


def test_before_access_yaml_was_applied_once_nothing_is_said_of_its_sections():
    directory = Directory(None, RecordedEvents())
    directory.take(Snapshot(1, {}, {}, SIGNING_KEY, {}))
    with pytest.raises(Unavailable):
        directory.applied()
    directory.take(Snapshot(2, {}, {}, SIGNING_KEY, APPLIED))
    directory.applied()


def test_a_change_of_one_principal_leaves_the_others_as_they_were():
    directory = fixed_access(**KNOWN).directory
    before = directory.named("sofia-bot")
    known = directory.known()
    both = {**known.principals, "new-bot": Grants(agents=["agent:new"])}
    directory.take(Snapshot(2, both, known.keys, SIGNING_KEY, known.settings))
    assert directory.named("sofia-bot") is before
    changed = {"sofia-bot": SOFIA.model_copy(update={"agents": ["agent:other"]})}
    directory.take(Snapshot(3, changed, known.keys, SIGNING_KEY, known.settings))
    assert "agent:sofia" not in directory.named("sofia-bot").agents
    assert directory.find("new-bot") is None


@pytest.mark.parametrize("agent_id", ["", "agent:\0", "agent:\ud800"])
def test_what_is_no_name_is_a_mistake_and_no_refusal(agent_id):
    with pytest.raises(InvalidRequest, match="agent_id: give 1 to 256 characters"):
        Principal("sofia-bot", SOFIA, "sofia-bot").check(agent_id=agent_id)


@pytest.mark.parametrize(
    ("agents", "headers", "expected"),
    [
        (["agent:sofia"], {}, "agent:sofia"),
        (["agent:*"], {"X-Agent-Id": "agent:x"}, "agent:x"),
        (["*"], {}, "agent:unnamed"),
        (["agent:*"], {}, "X-Agent-Id"),
        (["agent:a", "agent:b"], {}, "X-Agent-Id"),
        (["agent:a"], {"X-Agent-Id": "agent:x"}, "may not act as `agent:x`"),
    ],
)
def test_an_openai_client_that_names_nobody_is_told_how_to(agents, headers, expected):
    grants = Grants(agents=agents, microdaos=["microdao:7"])
    request = Request(
        {
            "type": "http",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            "state": {"principal": Principal("sofia-bot", grants, "sofia-bot")},
        }
    )
    try:
        found = call_metadata_of(request, None).agent_id
    except Forbidden as error:
        found = str(error)
    assert expected in found


def test_before_the_store_was_read_once_only_the_secrets_are_known():
    access = Authentication("inside", "above", Directory(None, RecordedEvents()))
    assert access.principal([b"inside"]).name == "internal"
    assert access.principal([b"above"]).name == "operator"
    with pytest.raises(Unavailable) as away:
        access.principal([KEY.encode()])
    assert away.value.retry_after_s is not None
