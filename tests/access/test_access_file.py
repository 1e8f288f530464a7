"""`access.yaml`: what it may hold, and how it is carried to PostgreSQL, again and again."""

import pytest

from backends.access.principals import PostgresPrincipals
from configs.access import AccessSettings, NatsAccess, contents_of, load_access
from contracts.access.keys import NewKey, key_hash, new_key
from contracts.access.principals import Grants
from contracts.errors import ConfigurationError, Conflict, NotFound, Unauthorized
from services.access.directory import Directory

SOFIA = """
principals:
  sofia-bot:
    kind: agent
    agents: ["agent:sofia"]
    microdaos: ["microdao:7"]
    limits: {{requests_per_minute: 60, usd_per_day: 5}}
    keys: [{key}]
"""


class AccessFile:
    """A folder with an `access.yaml`, the variables that it names, and the store behind it."""

    def __init__(self, folder, store, directory):
        self.variables = {}
        self.store, self.directory = store, directory
        self._folder = folder

    def contents(self, text):
        (self._folder / "access.yaml").write_text(text)
        return contents_of(load_access(self._folder), self.variables.get)

    async def apply(self, text):
        await self.store.apply(*self.contents(text))
        await self.directory.refresh()

    async def opens(self, key):
        await self.directory.refresh()
        try:
            return self.directory.of_key(key.encode()).name
        except Unauthorized:
            return None


@pytest.fixture
def file(tmp_path, database, events):
    store = PostgresPrincipals(database, events)
    return AccessFile(tmp_path, store, Directory(store, events))


async def test_a_principal_of_the_file_comes_and_goes_with_it(file):
    key = file.variables["SOFIA_KEY"] = new_key()
    await file.apply(SOFIA.format(key="{env: SOFIA_KEY, label: on the web}"))
    assert await file.opens(key) == "sofia-bot"
    view = await file.store.find("sofia-bot")
    assert (view.origin, view.grants.agents) == ("file", ["agent:sofia"])
    assert view.grants.limits.requests_per_minute == 60
    assert [(found.label, found.hint) for found in view.keys] == [("on the web", "access.yaml")]
    await file.apply("principals: {}")
    assert await file.opens(key) is None
    with pytest.raises(NotFound):
        await file.store.find("sofia-bot")
    await file.apply(SOFIA.format(key="{env: SOFIA_KEY}"))
    assert await file.opens(key) == "sofia-bot"


async def test_a_key_stands_in_the_file_by_its_hash(file):
    key = new_key()
    await file.apply(SOFIA.format(key=f"{{sha256: {key_hash(key.encode()).hex()}}}"))
    assert await file.opens(key) == "sofia-bot"


async def test_a_revoked_key_stays_revoked_while_the_file_names_it(file):
    key = file.variables["SOFIA_KEY"] = new_key()
    text = SOFIA.format(key="{env: SOFIA_KEY}")
    await file.apply(text)
    (listed,) = (await file.store.find("sofia-bot")).keys
    await file.store.revoke("sofia-bot", listed.id)
    await file.apply(text)
    assert await file.opens(key) is None
    # One that was taken out of the file was revoked by that.
    other = file.variables["OTHER_KEY"] = new_key()
    await file.apply(SOFIA.format(key="{env: OTHER_KEY}"))
    assert await file.opens(other) == "sofia-bot"
    await file.apply(text)
    await file.apply(SOFIA.format(key="{env: OTHER_KEY}"))
    assert await file.opens(other) is None


async def test_the_file_takes_over_a_key_that_was_made_by_a_route(file):
    await file.store.put("made", Grants(agents=["agent:made"]))
    key = file.variables["SOFIA_KEY"] = (await file.store.add_key("made", NewKey())).key
    assert await file.opens(key) == "made"
    await file.apply(SOFIA.format(key="{env: SOFIA_KEY}"))
    assert await file.opens(key) == "sofia-bot"
    await file.apply("principals: {}")
    assert await file.opens(key) is None


async def test_without_a_file_the_defaults_count(file, tmp_path):
    assert load_access(tmp_path / "nowhere") == AccessSettings()


async def test_a_key_moves_with_its_line_to_another_principal(file):
    key = file.variables["SOFIA_KEY"] = new_key()
    line = "{agents: ['agent:a'], keys: [{env: SOFIA_KEY}]}"
    await file.apply(f"principals: {{first: {line}, second: {{}}}}")
    assert await file.opens(key) == "first"
    await file.apply(f"principals: {{first: {{}}, second: {line}}}")
    assert await file.opens(key) == "second"


async def test_principals_of_the_file_are_changed_there_alone_and_may_have_further_keys(file):
    await file.store.put("other-bot", Grants())
    file.variables["SOFIA_KEY"] = new_key()
    text = SOFIA.format(key="{env: SOFIA_KEY}")
    await file.apply(text)
    for change in (file.store.put("sofia-bot", Grants()), file.store.delete("sofia-bot")):
        with pytest.raises(Conflict, match=r"configs/access\.yaml"):
            await change
    further = await file.store.add_key("sofia-bot", NewKey())
    await file.apply(text)
    assert await file.opens(further.key) == "sofia-bot"
    assert (await file.store.find("other-bot")).origin == "api"


async def test_the_file_takes_a_principal_over_with_its_keys(file):
    await file.store.put("sofia-bot", Grants())
    issued = (await file.store.add_key("sofia-bot", NewKey())).key
    await file.apply("principals: {sofia-bot: {agents: ['agent:sofia']}}")
    assert await file.opens(issued) == "sofia-bot"
    view = await file.store.find("sofia-bot")
    assert (view.origin, view.grants.agents) == ("file", ["agent:sofia"])
    await file.apply("principals: {}")
    assert await file.opens(issued) is None


async def test_what_did_not_change_keeps_its_times(file):
    file.variables["SOFIA_KEY"] = new_key()
    text = SOFIA.format(key="{env: SOFIA_KEY}")
    await file.apply(text)
    before = await file.store.find("sofia-bot")
    await file.apply(text)
    assert await file.store.find("sofia-bot") == before


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("{env: SOFIA_KEY}", None, "SOFIA_KEY is not set"),
        ("{env: SOFIA_KEY}", "dk_short", "32 characters"),
        ("{env: SOFIA_KEY}", "x" * 64, "no key `dk_…`"),
        ("{env: SOFIA_KEY}, {env: SOFIA_KEY}", "dk_" + "x" * 43, "`sofia-bot` has the same key"),
        ("{sha256: dk_not_a_hash}", None, "sha256"),
        ("{}", None, "give `sha256` or `env`"),
        ("{env: SOFIA_KEY}, {env: B}, {env: C}", None, "keys"),
    ],
)
def test_a_wrong_key_is_named_without_its_value(file, key, value, says):
    if value is not None:
        file.variables["SOFIA_KEY"] = value
    with pytest.raises(ConfigurationError) as refused:
        file.contents(SOFIA.format(key=key))
    assert says in refused.value.message
    assert value is None or value not in refused.value.message


async def test_what_the_message_bus_is_trusted_with_reaches_replicas(file):
    await file.apply("principals: {}")
    assert file.directory.section("nats", NatsAccess) == NatsAccess()
    await file.apply("nats: {subjects: {router.invoke.agent: dagi-router, tool.request: internal}}")
    known = file.directory.section("nats", NatsAccess)
    assert known.subjects == {"router.invoke.agent": "dagi-router", "tool.request": "internal"}
    assert known.tool_response is False


@pytest.mark.parametrize(
    "subjects", ["{tool.response: sofia-bot}", "{tool.*: sofia-bot}", "{tool.request: operator}"]
)
async def test_a_subject_is_bound_only_where_messages_come_in_and_to_no_operator(file, subjects):
    with pytest.raises(ConfigurationError, match=r"nats\.subjects"):
        file.contents(f"nats: {{subjects: {subjects}}}")
