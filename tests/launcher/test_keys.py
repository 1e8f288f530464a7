"""`make key` against the root application over real HTTP and PostgreSQL."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import yaml
from starlette.responses import PlainTextResponse

from backends.access.principals import PostgresPrincipals
from contracts.access.keys import key_hash
from contracts.access.principals import Grants
from launcher.keys import main
from launcher.ports import free_ports
from tests.support.access import opened_access, served_keys
from tests.support.uvicorn_server import served

REPOSITORY = Path(__file__).resolve().parents[2]
INTERNAL, ADMIN = "the internal secret", "the administrators' secret"
SOFIA = ["--kind", "agent", "--agent", "agent:sofia", "--microdao", "microdao:7"]


class Command:
    """Runs the command as a user does, with the variables of a shell."""

    def __init__(self, url, directory, capsys, monkeypatch):
        self.url, self.directory = url, directory
        self._capsys, self._monkeypatch = capsys, monkeypatch
        self.set(ADMIN)

    def set(self, secret):
        for name in ("DAARION_HOST", "DAARION_INTERNAL_SECRET", "DAARION_ADMIN_SECRET"):
            self._monkeypatch.delenv(name, raising=False)
        self._monkeypatch.setenv("DAARION_PORT", self.url.rpartition(":")[2])
        if secret is not None:
            self._monkeypatch.setenv("DAARION_ADMIN_SECRET", secret)

    async def __call__(self, *words, status=0):
        """Returns what it wrote to standard output and to standard error."""
        self._capsys.readouterr()
        assert await asyncio.to_thread(main, words) == status
        return self._capsys.readouterr()

    async def refused(self, *words, status=1):
        out, err = await self(*words, status=status)
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith("key: ")
        return err

    async def shown(self, name):
        return yaml.safe_load((await self("show", name)).out)

    async def opens(self, key):
        await self.directory.refresh()
        async with httpx.AsyncClient() as client:
            answer = await client.get(
                f"{self.url}/internal/access/me", headers={"x-api-key": key.strip()}
            )
        return answer.json().get("name")


@pytest.fixture
async def key(database_url: str, database, events, capsys, monkeypatch) -> AsyncIterator[Command]:
    store = PostgresPrincipals(database, events)
    async with (
        opened_access(database_url, events, INTERNAL, ADMIN) as access,
        served_keys(access, store, events) as url,
    ):
        yield Command(url, access.directory, capsys, monkeypatch)


async def test_a_new_principal_gets_a_key_that_stands_alone_on_standard_output(key):
    made = await key("new", "sofia-bot", *SOFIA, "--days", "90", "--label", "on the web")
    assert await key.opens(made.out) == "sofia-bot"
    assert (made.out.count("\n"), made.out.strip() in made.err) == (1, False)
    assert "agents:\n- agent:sofia" in made.err
    view = await key.shown("sofia-bot")
    assert (view["grants"]["kind"], view["grants"]["microdaos"]) == ("agent", ["microdao:7"])
    (listed,) = view["keys"]
    assert (listed["label"], "expires_at" in listed) == ("on the web", True)
    assert "`add`" in await key.refused("new", "sofia-bot", *SOFIA)


async def test_make_passes_the_words_on_and_writes_the_key_alone(key):
    made = await asyncio.create_subprocess_exec(
        "make",
        "-s",
        "key",
        'ARGS=new sofia-bot --agent agent:sofia --microdao "microdao:*" --label "on the web"',
        cwd=REPOSITORY,
        env={**os.environ, "MAKEFLAGS": ""},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await made.communicate()
    assert made.returncode == 0, err
    assert await key.opens(out.decode()) == "sofia-bot"
    assert (await key.shown("sofia-bot"))["grants"]["microdaos"] == ["microdao:*"]


async def test_grants_are_given_and_changed_one_by_one(key):
    limits = ["--limit", "requests_per_minute=60", "--limit", "usd_per_day=2.5"]
    only = ["--application", "llm", "--application", "memory", "--model", "gpt-*"]
    await key("new", "sofia-bot", *SOFIA, *only, *limits, "--max-cost-per-run", "0.1")
    given = (await key.shown("sofia-bot"))["grants"]
    assert (given["applications"], given["models"]) == (["llm", "memory"], ["gpt-*"])
    assert given["limits"] == {"requests_per_minute": 60, "usd_per_day": "2.5"}
    assert given["max_cost_per_run"] == "0.1"
    await key("change", "sofia-bot", "--model", "*", "--limit", "usd_per_day=null")
    changed = {"models": ["*"], "limits": {"requests_per_minute": 60}}
    assert (await key.shown("sofia-bot"))["grants"] == {**given, **changed}


async def test_a_key_is_rotated_and_the_old_one_is_revoked_by_its_beginning(key):
    old = (await key("new", "sofia-bot", *SOFIA)).out
    rotated = await key("rotate", "sofia-bot", "--grace-hours", "2")
    assert "2 hours" in rotated.err
    assert [await key.opens(one) for one in (old, rotated.out)] == ["sofia-bot"] * 2
    assert "2 live keys: revoke one" in await key.refused("rotate", "sofia-bot")
    assert "they are:" in await key.refused("revoke", "sofia-bot", "dk_")
    await key("revoke", "sofia-bot", old[:12])
    assert [await key.opens(one) for one in (old, rotated.out)] == [None, "sofia-bot"]
    (left,) = (await key.shown("sofia-bot"))["keys"]
    await key("revoke", "sofia-bot", left["id"])
    again = (await key("add", "sofia-bot", "--days", "1")).out
    assert [await key.opens(one) for one in (rotated.out, again)] == [None, "sofia-bot"]


async def test_every_principal_is_listed_in_a_line(key, database, events):
    file = PostgresPrincipals(database, events)
    await file.apply({"from-file": Grants(kind="person")}, [], {})
    for number in range(250):
        await file.put(f"bot-{number}", Grants())
    await key("new", "sofia-bot", *SOFIA)
    lines = (await key("list")).out.splitlines()
    assert len(lines) == 252
    assert lines[0].split()[:3] == ["sofia-bot", "agent", "api"]
    assert lines[0].endswith("used never")
    assert lines[-1].split()[:3] == ["from-file", "person", "file"]


async def test_a_removed_principal_is_gone_and_one_of_the_file_is_not_removed_here(
    key, database, events
):
    made = await key("new", "sofia-bot", *SOFIA)
    await key("remove", "sofia-bot")
    assert await key.opens(made.out) is None
    assert "no such principal" in await key.refused("remove", "sofia-bot")
    await PostgresPrincipals(database, events).apply({"from-file": Grants()}, [], {})
    assert "configs/access.yaml" in await key.refused("remove", "from-file")


@pytest.mark.parametrize("wrong", ["--days=-1", "--days=nan", f"--label={'x' * 500}"])
async def test_a_wrong_key_is_refused_before_its_principal_is_made(key, wrong):
    name = wrong[2:].partition("=")[0]
    assert name in await key.refused("new", "sofia-bot", "--agent", "agent:first", wrong)
    assert "make key ARGS=list" in await key.refused("show", "sofia-bot")
    await key("new", "sofia-bot", *SOFIA)
    assert (await key.shown("sofia-bot"))["grants"]["agents"] == ["agent:sofia"]
    assert name in await key.refused("rotate", "sofia-bot", wrong)


async def test_a_key_for_the_file_needs_no_graph(key, monkeypatch):
    monkeypatch.setenv("DAARION_PORT", str(free_ports(1)[0]))
    made = await key("new")
    assert made.out.startswith("dk_")
    assert key_hash(made.out.strip().encode()).hex() in made.err


@pytest.mark.parametrize(
    ("secret", "says"),
    [(None, "present a key"), ("guessed", "present a key"), (INTERNAL, "operator's key")],
)
async def test_without_the_admin_secret_nothing_is_done(key, secret, says):
    key.set(secret)
    for words in (["new", "sofia-bot", *SOFIA], ["list"], ["remove", "sofia-bot"]):
        error = await key.refused(*words)
        assert says in error
        assert "DAARION_ADMIN_SECRET" in error
        assert secret is None or secret not in error


async def test_wrong_words_are_named_in_a_line(key):
    assert "pattern" in await key.refused("new", "Sofia Bot", *SOFIA)
    assert "may only stand at the end" in await key.refused("new", "sofia", "--agent", "a*b")
    assert "no such" in await key.refused("show", "../../docs")
    for words in ([], ["new", "x", "--limit", "usd_per_day=much"], ["revoke", "sofia-bot"]):
        with pytest.raises(SystemExit) as ended:
            await key(*words)
        assert ended.value.code == 2


async def test_another_server_is_no_graph_and_a_closed_port_answers_nothing(key):
    port = str(free_ports(1)[0])
    closed = await key.refused("--ingress", f"http://127.0.0.1:{port}", "list", status=2)
    assert "no graph answers" in closed
    async with served(PlainTextResponse("hello")) as url:
        assert "is it a graph?" in await key.refused("--ingress", url, "list")
