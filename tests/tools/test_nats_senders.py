"""Who sends a call over NATS, what it may do so, and where its answer may go: on a real server,
with principals in a real database.
"""

from __future__ import annotations

import asyncio
import base64
import json

import nats
import pytest

from backends.access.audit import PostgresAudit
from contracts.access.audit import AuditQuery
from contracts.access.principals import Grants, acting
from contracts.errors import Unauthorized
from contracts.tools.api import Outcome
from interfaces.nats import tools as tool_nats
from interfaces.nats.senders import KEPT_HEADER, may_reply
from interfaces.nats.work_queue import ERROR_HEADER, REASON_HEADER
from launcher.nats import NatsServer
from services.access.audit import AuditTrail
from tests.support.access import apply_file, opened_access
from tests.support.events import RecordedEvents
from tests.support.tools.nats import answer_of, listening, request
from tests.support.tools.toolcore import client, replica, tool

SECRET = "the internal secret of this test"
SOFIAS, READERS = "dk_" + "s" * 43, "dk_" + "r" * 43
PRINCIPALS = {
    "sofia-bot": Grants(
        kind="agent",
        agents=["agent:sofia"],
        microdaos=["microdao:7"],
        tools=["test.*"],
        reply_subjects=["answers.*.sofia", "sofia.>"],
    ),
    "reader": Grants(applications=["llm"], agents=["*"], microdaos=["*"]),
}
KEYS = {SOFIAS: "sofia-bot", READERS: "reader"}
SIGNED = {"Authorization": f"Bearer {SOFIAS}"}


@pytest.fixture
async def server(tmp_path):
    async with NatsServer(tmp_path) as running:
        yield running


@pytest.fixture
async def outside(server):
    """A caller's connection."""
    connection = await nats.connect(server.url)
    yield connection
    await connection.close()


@pytest.fixture
async def access(database_url):
    async with opened_access(database_url, RecordedEvents(), SECRET) as known:
        await apply_file(known, PRINCIPALS, KEYS)
        yield known


def named(_execution):
    """A tool's result: who the call runs for."""
    return acting().name


async def ask(outside, headers=None, subject=tool_nats.REQUEST, **fields):
    return await answer_of(
        await outside.request(subject, request(**fields), timeout=60, headers=headers)
    )


@pytest.mark.parametrize(
    ("headers", "principal"),
    [
        (SIGNED, "sofia-bot"),
        ({"x-api-key": SOFIAS}, "sofia-bot"),
        ({"X-INTERNAL-SECRET": SECRET}, "internal"),
    ],
)
async def test_a_signed_call_runs_for_its_sender(
    database_url, server, outside, access, headers, principal
):
    async with (
        replica(database_url, tool(), script=named) as here,
        listening(here, server, access),
    ):
        answer = await ask(outside, headers)
    assert (answer["ok"], answer["result"]) == (True, principal)


@pytest.mark.parametrize("headers", [None, {"Authorization": "Bearer dk_guessed"}])
async def test_a_call_without_a_valid_key_is_refused_and_says_what_to_do(
    database_url, server, outside, access, headers
):
    async with replica(database_url, tool()) as here, listening(here, server, access):
        answer = await ask(outside, headers, call_id="n-1")
        streams = outside.jetstream()
        assert (await streams.stream_info(tool_nats.WORK_STREAM)).state.last_seq == 0
    assert (answer["ok"], answer["error_kind"], answer["retryable"]) == (False, "denied", False)
    assert answer["call_id"] == "n-1"
    assert ("ask for a new one" if headers else "present a key as") in answer["error"]
    assert here.executor.seen == []
    assert [event["principal"] for event in here.events.named("tools.nats_refused")] == [None]


@pytest.mark.parametrize(
    "foreign",
    [
        {"agent_id": "agent:other"},
        {"microdao_id": "microdao:8"},
        {"context": {"microdao_id": "microdao:8"}},
        {"tool_id": "other.echo"},
    ],
)
async def test_what_is_not_the_senders_is_refused_and_named(
    database_url, server, outside, access, foreign
):
    (claim,) = foreign.values()
    (claim,) = claim.values() if isinstance(claim, dict) else (claim,)
    async with (
        replica(database_url, tool(), tool("other.echo")) as here,
        listening(here, server, access),
    ):
        answer = await ask(outside, SIGNED, **foreign)
        assert (answer["ok"], answer["error_kind"]) == (False, "denied")
        assert f"`{claim}`" in answer["error"]
        assert (await ask(outside, SIGNED))["ok"] is True
        parked = await outside.jetstream().get_msg(tool_nats.PARKED_STREAM, 1)
    assert parked.headers[REASON_HEADER] == "forbidden"
    assert parked.headers[ERROR_HEADER] == answer["error"]
    assert SOFIAS not in str(parked.headers)
    assert len(here.executor.seen) == 1


async def test_a_principal_of_other_applications_calls_no_tool(
    database_url, server, outside, access
):
    async with replica(database_url, tool()) as here, listening(here, server, access):
        answer = await ask(outside, {"Authorization": f"Bearer {READERS}"})
    assert (answer["error_kind"], "`tools`" in answer["error"]) == ("denied", True)


async def test_a_revoked_key_stops(database_url, server, outside, access):
    async with replica(database_url, tool()) as here, listening(here, server, access):
        assert (await ask(outside, SIGNED))["ok"] is True
        store = access.directory.store
        (key,) = (await store.find("sofia-bot")).keys
        await store.revoke("sofia-bot", key.id)
        async with asyncio.timeout(60):  # the replica polls the store
            while (answer := await ask(outside, SIGNED))["ok"]:
                await asyncio.sleep(0.1)
    assert answer["error_kind"] == "denied"


async def test_the_stream_holds_a_delegation_and_no_key(database_url, server, outside, access):
    release = asyncio.Event()

    async def slow(_):
        await release.wait()
        return Outcome(ok=True, result=acting().name)

    async with (
        replica(database_url, tool(timeout_s=60), script=slow) as here,
        listening(here, server, access),
        client(here.toolcore, here.events, internal=SECRET) as http,
    ):
        asked = asyncio.create_task(ask(outside, SIGNED))
        async with asyncio.timeout(60):
            while not here.executor.seen:
                await asyncio.sleep(0.02)
        stored = await raw(outside, 1)
        assert KEPT_HEADER.encode() in stored
        assert b"dk_" not in stored
        token = (await outside.jetstream().get_msg(tool_nats.WORK_STREAM, 1)).headers[KEPT_HEADER]
        with pytest.raises(Unauthorized):
            access.principal([token.encode()])
        over_http = await http.post("/call", content=request(), headers={"x-api-key": token})
        assert over_http.status_code == 401
        release.set()
        assert (await asked)["result"] == "sofia-bot"


async def raw(outside, number):
    """Returns everything that the stream of calls holds of a message."""
    answer = await outside.request(
        f"$JS.API.STREAM.MSG.GET.{tool_nats.WORK_STREAM}", json.dumps({"seq": number}).encode()
    )
    message = json.loads(answer.data)["message"]
    return base64.b64decode(message["hdrs"]) + base64.b64decode(message["data"])


async def test_a_call_published_into_the_stream_carries_its_own_key(
    database_url, server, outside, access
):
    async with (
        replica(database_url, tool(), script=named) as here,
        listening(here, server, access),
    ):
        streams, inbox = outside.jetstream(), outside.new_inbox()
        answers = await outside.subscribe(inbox)
        reply = {tool_nats.REPLY_HEADER: inbox}
        await streams.publish(tool_nats.SUBMIT, request(), headers={**SIGNED, **reply})
        assert (await answer_of(await answers.next_msg(60)))["result"] == "sofia-bot"
        await streams.publish(tool_nats.SUBMIT, request(), headers=reply)
        refused = await answer_of(await answers.next_msg(60))
        parked = await streams.get_msg(tool_nats.PARKED_STREAM, 1)
    assert (refused["error_kind"], parked.headers[REASON_HEADER]) == ("denied", "unauthorized")


@pytest.mark.parametrize("first_hop", ["request", "stream"])
async def test_answers_go_only_where_the_sender_may_have_them_sent(
    database_url, server, outside, access, first_hop
):
    heard = await outside.subscribe("*.>")

    async def send(reply):
        if first_hop == "request":
            await outside.publish(tool_nats.REQUEST, request(), reply=reply, headers=SIGNED)
        else:
            headers = {**SIGNED, tool_nats.REPLY_HEADER: reply}
            await outside.jetstream().publish(tool_nats.SUBMIT, request(), headers=headers)

    async def answered(subject):
        while (message := await heard.next_msg(timeout=60)).subject != subject:
            assert message.subject not in foreign
        return await answer_of(message)

    foreign = ["answers.of.everybody", "usage.llm", "router.invoke.agent", "answers.a.b.sofia"]
    async with replica(database_url, tool()) as here, listening(here, server, access):
        for subject in foreign:
            await send(subject)
        for subject in ("answers.7.sofia", "sofia.a.b", outside.new_inbox()):
            await send(subject)
            assert (await answered(subject))["ok"] is True
        refusals = here.events.named("tools.nats_refused") + here.events.named("tools.nats_parked")
    assert len(here.executor.seen) == 3
    assert len(refusals) == len(foreign)
    assert {each["principal"] for each in refusals} == {"sofia-bot"}


async def test_results_are_not_shown_to_everybody_unless_configured(
    database_url, server, outside, access
):
    heard = await outside.subscribe(tool_nats.RESPONSE)
    await outside.flush()
    async with replica(database_url, tool()) as here, listening(here, server, access):
        assert (await ask(outside, SIGNED, call_id="quiet"))["ok"] is True
        await apply_file(access, PRINCIPALS, KEYS, nats={"tool_response": True})
        assert (await ask(outside, SIGNED, call_id="shown"))["ok"] is True
        assert (await answer_of(await heard.next_msg(60)))["call_id"] == "shown"


async def test_a_bound_subject_acts_as_its_principal(database_url, server, outside, access):
    bound = {"subjects": {tool_nats.REQUEST: "sofia-bot"}}
    await apply_file(access, PRINCIPALS, KEYS, nats=bound)
    async with (
        replica(database_url, tool(), script=named) as here,
        listening(here, server, access),
    ):
        assert (await ask(outside))["result"] == "sofia-bot"
        refused = await ask(outside, agent_id="agent:other")
        assert (refused["error_kind"], "`agent:other`" in refused["error"]) == ("denied", True)
        signed = await ask(outside, {"X-Internal-Secret": SECRET})
        assert signed["result"] == "internal"
        wrong = await ask(outside, {"X-Internal-Secret": "guessed"})
        assert wrong["error_kind"] == "denied"


async def test_what_is_refused_to_a_sender_is_in_the_audit_trail(
    database_url, server, outside, access, database
):
    access.audit = AuditTrail(PostgresAudit(database), RecordedEvents(), lambda: None)
    async with replica(database_url, tool()) as here, listening(here, server, access):
        await ask(outside)
        for _ in range(2):
            await ask(outside, SIGNED, microdao_id="microdao:8")
        await ask(outside, SIGNED, timeout_s=-1)
    await access.audit.flush()
    found = (await access.audit.store.page(AuditQuery())).items
    entries = [entry for entry in found if entry.outcome == "denied"]
    fields = ("principal", "action", "object", "outcome", "microdao_id", "count")
    assert sorted([getattr(entry, name) for name in fields] for entry in entries) == [
        ["anonymous", "login", tool_nats.REQUEST, "denied", None, 1],
        ["sofia-bot", "publish", tool_nats.SUBMIT, "denied", "microdao:8", 2],
    ]


def test_reply_subjects_are_matched_as_the_server_matches():
    sender = type("Sender", (), {"grants": Grants(reply_subjects=["a.*.c", "b.>", "d"])})
    allowed = ["_INBOX.x", "_INBOX.x.y", "a.b.c", "b.c", "b.c.d", "d"]
    refused = ["_INBOX", "_INBOXx.y", "a.b.d", "a.b.b.c", "b", "xb.c", "d.e", "_INBOX.*", "b.>"]
    refused += ["", "$JS.API.STREAM.DELETE.TOOL_CALLS", "_INBOX.a b", "_INBOX.\u0430"]
    assert [subject for subject in allowed if not may_reply(subject, sender)] == []
    assert [subject for subject in refused if may_reply(subject, sender)] == []
    assert may_reply("_INBOX.x", None)
    assert not may_reply("d", None)
