"""An outside policy service: what it is asked, what its answers mean, and what happens without."""

import pytest

from backends.access.principals import PostgresPrincipals
from configs.access import AccessSettings, PolicyServiceSettings, contents_of, load_access
from contracts.access.policy import policy_question
from contracts.access.principals import OPERATORS, OURSELVES, Grants, Principal, acting_as
from contracts.errors import ConfigurationError, Forbidden, PolicyUnavailable, Unavailable
from contracts.identity import Tenant
from deployments.graph.resources import WingEnvironment
from services.access.authentication import Authentication
from services.access.directory import Directory
from tests.support.policy_server import AWAY, PERMIT, policy_client, policy_server

TENANT = Tenant(microdao_id="microdao:7", agent_id="agent:sofia")
TOOL = ("tool", "projects.list")
DENY = (200, {"effect": "deny", "reason": "not a member"})
NO_DECISIONS = {
    "server error": (500, {"effect": "permit"}),
    "refusal": (403, {"error": {"type": "forbidden", "message": "no"}}),
    "no JSON": (200, b"<html>permit</html>"),
    "nothing": (200, b""),
    "a list": (200, ["permit"]),
    "another word": (200, {"effect": "allow"}),
    "no word": (200, {"reason": "because"}),
    "a reason that is no text": (200, {"effect": "permit", "reason": {"a": 1}}),
    "obligations": (200, {"effect": "permit", "obligations": {"mask": ["args"]}}),
    "elsewhere": (307, b"", {"location": "http://127.0.0.1:9/"}),
    "too long": (200, b" " * (9 << 20)),
    "never": None,
}


@pytest.fixture
async def policies():
    async with policy_server() as running:
        yield running


def person(**grants):
    return Principal("olena", Grants(kind="person", agents=["*"], **grants), "olena")


async def test_the_question_has_the_services_shape(policies):
    caller = person(microdaos=["microdao:8", "community:*"])
    async with policy_client(policies) as client:
        with acting_as(caller):
            await client.check("exec_tool", TOOL, TENANT)
    [seen] = policies.server.seen
    assert (seen.method, seen.path) == ("POST", "/internal/pdp/evaluate")
    assert seen.body == {
        "actor": {
            "actor_id": "olena",
            "actor_type": "human",
            "microdao_ids": ["microdao:7", "microdao:8"],
            "roles": [],
        },
        "action": "exec_tool",
        "resource": {"type": "tool", "id": "projects.list"},
        "context": {"agent_id": "agent:sofia", "microdao_id": "microdao:7"},
    }
    assert not {"x-internal-secret", "authorization"} & seen.headers.keys()


@pytest.mark.parametrize(
    ("principal", "actor_type", "roles"),
    [
        (OURSELVES, "service", []),
        (OPERATORS, "service", ["operator"]),
        (Principal("bot", Grants(kind="agent"), "bot"), "agent", []),
    ],
)
def test_an_actor_is_a_human_an_agent_or_a_service(principal, actor_type, roles):
    actor = policy_question(principal, "send_message", ("agent", "agent:sofia"), TENANT)["actor"]
    assert (actor["actor_type"], actor["roles"]) == (actor_type, roles)


async def test_a_denial_has_the_services_reason_in_one_line_and_bounded(policies):
    policies.answer = (
        200,
        {"effect": "deny", "reason": "not\na\x1b[31m member\u202e " + "x" * 999},
    )
    async with policy_client(policies) as client:
        with pytest.raises(Forbidden) as denied:
            await client.check("exec_tool", TOOL, TENANT)
    message = denied.value.message
    assert message.startswith("the policy service denies this: not a [31m member x")
    assert message.isprintable()
    assert len(message) < 250
    assert not isinstance(denied.value, PolicyUnavailable)
    policies.answer = (200, {"effect": "deny"})
    async with policy_client(policies) as client:
        with pytest.raises(Forbidden, match="denies this: it gives no reason"):
            await client.check("exec_tool", TOOL, TENANT)


@pytest.mark.parametrize("answer", NO_DECISIONS.values(), ids=NO_DECISIONS)
@pytest.mark.parametrize("on_failure", ["deny", "allow"])
async def test_what_is_no_decision_counts_as_the_operator_says(
    policies, events, answer, on_failure
):
    policies.answer = answer
    timeout_s = 0.2 if answer is None else 20
    options = {"on_failure": on_failure, "timeout_s": timeout_s}
    async with policy_client(policies, events, **options) as client:
        for _ in range(2):
            if on_failure == "allow":
                await client.check("exec_tool", TOOL, TENANT)
            else:
                with pytest.raises(PolicyUnavailable) as denied:
                    await client.check("exec_tool", TOOL, TENANT)
                assert (denied.value.status, denied.value.retryable) == (403, True)
        assert len(policies.asked) == 2  # failures are not remembered
        assert [name for name, _ in events.events] == ["access.policy_failed"] * 2
        policies.answer = PERMIT
        client.settings = client.settings.model_copy(update={"timeout_s": 20})
        await client.check("exec_tool", TOOL, TENANT)
        assert len(events.events) == 2


@pytest.mark.parametrize("on_failure", ["deny", "allow"])
async def test_a_service_that_is_away_counts_as_the_operator_says(policies, events, on_failure):
    async with policy_client(policies, events, url=AWAY, on_failure=on_failure) as client:
        if on_failure == "allow":
            await client.check("exec_tool", TOOL, TENANT)
        else:
            with pytest.raises(PolicyUnavailable):
                await client.check("exec_tool", TOOL, TENANT)
    assert events.named("access.policy_failed") == [{"action": "exec_tool", "error": "unreachable"}]


@pytest.mark.parametrize("answer", [PERMIT, DENY])
async def test_a_decision_is_remembered_for_the_same_question_alone(policies, answer):
    policies.answer = answer

    async def asks(client, principal=OURSELVES, *question):
        action, resource, tenant = question or ("exec_tool", TOOL, TENANT)
        before = len(policies.asked)
        try:
            with acting_as(principal):
                await client.check(action, resource, tenant)
        except Forbidden:
            assert answer is DENY
        return len(policies.asked) - before

    async with policy_client(policies, cache_s=300) as client:
        assert [await asks(client) for _ in range(3)] == [1, 0, 0]
        others = [
            (person(microdaos=["*"]), "exec_tool", TOOL, TENANT),
            (OPERATORS, "exec_tool", TOOL, TENANT),
            (OURSELVES, "send_message", TOOL, TENANT),
            (OURSELVES, "exec_tool", ("tool", "projects.create"), TENANT),
            (OURSELVES, "exec_tool", ("agent", "projects.list"), TENANT),
            (OURSELVES, "exec_tool", TOOL, TENANT.model_copy(update={"microdao_id": "m:8"})),
            (OURSELVES, "exec_tool", TOOL, TENANT.model_copy(update={"agent_id": "agent:b"})),
        ]
        assert [await asks(client, *other) for other in others] == [1] * len(others)
        assert [await asks(client, *other) for other in others] == [0] * len(others)
    async with policy_client(policies, cache_s=0) as client:
        assert [await asks(client) for _ in range(3)] == [1, 1, 1]


async def test_the_service_gets_the_secret_that_its_variable_holds(policies):
    lookup = {"PDP_SECRET": "of the policy service"}.get
    async with policy_client(policies, secret_env="PDP_SECRET", lookup=lookup) as client:
        await client.check("exec_tool", TOOL, TENANT)
    assert policies.server.seen[0].headers["x-internal-secret"] == "of the policy service"


@pytest.mark.parametrize(
    "variables",
    [{}, {"PDP_SECRET": "own", "DAARION_INTERNAL_SECRET": "own"}, {"DAARION_ADMIN_SECRET": "own"}],
)
async def test_a_secret_of_this_graph_goes_nowhere(policies, events, variables):
    name = "PDP_SECRET" if "PDP_SECRET" in variables else [*variables, "PDP_SECRET"][0]
    section = {"url": policies.url, "secret_env": name}
    settings = AccessSettings.model_validate({"policy_service": section})
    with pytest.raises(ConfigurationError, match=f"policy_service.secret_env: {name} is not set"):
        contents_of(settings, variables.get)
    # A replica whose environment differs does not send it either.
    async with policy_client(policies, events, secret_env=name, lookup=variables.get) as client:
        with pytest.raises(PolicyUnavailable):
            await client.check("exec_tool", TOOL, TENANT)
    assert policies.asked == []


@pytest.mark.parametrize(
    "fields",
    [
        {"url": "https://user:word@pdp"},
        {"url": "ftp://pdp"},
        {"on_failure": "ask"},
        {"timeout_s": 0},
        {"cache_s": 301},
        {"secret": "in the file"},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        PolicyServiceSettings.model_validate({"url": "http://pdp:7012", **fields})


async def test_a_reload_reaches_a_running_client(policies, tmp_path, database, events):
    store = PostgresPrincipals(database, events)
    directory = Directory(store, events)
    access = Authentication(None, None, directory)
    client = WingEnvironment("", tmp_path, "", access).policy_service(events)

    async def reload(text):
        (tmp_path / "access.yaml").write_text(text)
        await store.apply(*contents_of(load_access(tmp_path), lambda _name: None))
        await directory.refresh()

    with pytest.raises(Unavailable):  # nothing is permitted before the first read
        await client.check("exec_tool", TOOL, TENANT)
    await reload("principals: {}")
    await client.check("exec_tool", TOOL, TENANT)
    assert policies.asked == []
    policies.answer = DENY
    await reload(f"policy_service: {{url: '{policies.url}'}}")
    with pytest.raises(Forbidden, match="not a member"):
        await client.check("exec_tool", TOOL, TENANT)
    await reload("principals: {}")
    await client.check("exec_tool", TOOL, TENANT)
    await client.close()
