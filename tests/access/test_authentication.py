"""Who presents a credential, and what counts before and beside the store of keys."""

import pytest

from contracts.access.keys import Snapshot
from contracts.access.principals import Grants
from contracts.errors import Unauthorized, Unavailable
from services.access.authentication import Authentication
from services.access.directory import Directory
from tests.support.access import APPLIED, SIGNING_KEY, fixed_access
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


def test_before_the_store_was_read_once_only_the_secrets_are_known():
    access = Authentication("inside", "above", Directory(None, RecordedEvents()))
    assert access.principal([b"inside"]).name == "internal"
    assert access.principal([b"above"]).name == "operator"
    with pytest.raises(Unavailable) as away:
        access.principal([KEY.encode()])
    assert away.value.retry_after_s is not None
