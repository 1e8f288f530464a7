"""The evaluation on public sets: reading the formats, and a run over HTTP."""

import asyncio
import json
import shutil
import socket
import subprocess
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from backends.http.client import presenting
from benchmarks.memory import evaluate as evaluation
from benchmarks.memory.datasets import DatasetError, Question, read_conversations
from benchmarks.memory.evaluate import Asked, EvaluatedMemory, evaluate, main, measures, report
from contracts.errors import Forbidden, Unauthorized
from launcher.postgres import DatabaseUrls
from tests.support.access import access_control
from tests.support.memory.application import Memory, ingress, succeeded
from tests.support.memory.hashing_embedder import HashingEmbedder
from tests.support.memory.public_sets import locomo, longmemeval
from tests.support.uvicorn_server import served

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """The tiny sets as files."""
    paths = {}
    for read in (locomo, longmemeval):
        paths[read.__name__] = tmp_path / f"{read.__name__}.json"
        paths[read.__name__].write_text(json.dumps(read()))
    return paths


@pytest.fixture
async def url(memory: Memory, events):
    """The application behind HTTP, as the graph's ingress serves it."""
    prefix = evaluation.PREFIX
    async with served(ingress(memory.runtime, events), root_path=prefix) as base:
        yield base.removesuffix(prefix)


@pytest.fixture
async def client(url: str):
    memory = EvaluatedMemory(url, dict)
    yield memory
    await memory.close()


async def stored(urls: DatabaseUrls) -> int:
    """Rows of memories, of every tenant."""
    async with await psycopg.AsyncConnection.connect(urls.superuser) as connection:
        row = await (await connection.execute("SELECT count(*) FROM memories")).fetchone()
    assert row is not None
    return int(row[0])


def test_locomo_becomes_turns_in_the_order_of_sessions(files):
    [found] = read_conversations(files["locomo"])
    assert found.id == "conv-1"
    assert [turn.id for turn in found.turns] == [
        *("D1:1", "D1:2"),
        *(f"D2:{number}" for number in range(1, 13)),
        *("D10:1", "D10:2"),
    ]
    assert found.turns[1].text == (
        "Borys: My beehive produced lavender honey. [image: jars on a shelf]"
    )
    assert found.turns[1].at == datetime(2023, 5, 8, 13, 57, tzinfo=UTC)
    assert found.turns[-1].text == "Olha: [image: a frozen fountain]"
    assert found.turns[-1].at == datetime(2024, 1, 1, 0, 6, tzinfo=UTC)
    assert {turn.session for turn in found.turns} == {"1", "2", "10"}


def test_locomos_evidence_is_read_as_it_is_published(files):
    [found] = read_conversations(files["locomo"])
    assert [(one.category, one.turns, one.sessions) for one in found.questions] == [
        ("4 single-hop", {"D1:2"}, {"1"}),
        ("1 multi-hop", {"D10:1", "D10:2"}, {"10"}),
        ("2 temporal", {"D1:1"}, {"1"}),
    ]
    assert found.left_out == Counter({"adversarial": 1, "without evidence": 1})


def test_longmemeval_becomes_a_conversation_per_question(files):
    first, second, third = read_conversations(files["longmemeval"])
    assert [turn.text for turn in first.turns][1:4] == [
        "Assistant: Roast the pumpkin first.",
        "User: My telescope is a Dobsonian.",
        "Assistant: A Dobsonian suits galaxies.",
    ]
    assert first.turns[1].at - first.turns[0].at == timedelta(minutes=1)
    assert len({turn.id for turn in first.turns}) == 6  # a session that comes twice is stored twice
    [question] = first.questions
    assert question == Question(
        "Which telescope is a Dobsonian?",
        "single-session-user",
        frozenset({first.turns[2].id}),
        frozenset({"answer_1"}),
        datetime(2023, 6, 1, 10, tzinfo=UTC),
    )
    assert second.questions[0].turns == frozenset()
    assert (third.questions, third.left_out) == ([], Counter({"abstention": 1}))


def test_evidence_at_or_after_the_question_is_left_out_and_counted(tmp_path):
    file = tmp_path / "data.json"
    record = longmemeval()[0]
    record["question_date"] = record["haystack_dates"][0]
    record["haystack_sessions"][2] = record["haystack_sessions"][0]
    record["haystack_session_ids"][1] = "answer_2"
    record["answer_session_ids"] += ["answer_2", "filler_1"]
    file.write_text(json.dumps([record, {**record, "answer_session_ids": ["answer_1"]}]))
    first, second = read_conversations(file)
    [question] = first.questions
    assert (question.turns, question.sessions) == (frozenset(), {"answer_2"})
    assert first.left_out == {"late evidence turns": 2, "late evidence sessions": 2}
    assert second.questions == []
    assert second.left_out == {
        "late evidence turns": 1,
        "late evidence sessions": 1,
        "without evidence": 1,
    }
    printed = report([first, second], [Asked(question, [], [], 1.0, is_degraded=False)])
    assert (
        "left out: late evidence sessions 3, late evidence turns 3, without evidence 1" in printed
    )


def changed(read, path, value):
    """Returns a set as text, with one value replaced."""
    data = read()
    target = data
    for part in path[:-1]:
        target = target[part]
    target[path[-1]] = value
    return json.dumps(data)


MALFORMED = {
    "no JSON": ("{", "is not JSON"),
    "no records": ("[]", "holds no records"),
    "another file": ('[{"question": "?"}]', "record 1: is neither of LoCoMo"),
    "not an object": ("[3]", "record 1: is neither of LoCoMo"),
    "a category that does not exist": (
        changed(locomo, [0, "qa", 2, "category"], 9),
        "record 1: qa.2.category: Input should be 1, 2, 3, 4 or 5",
    ),
    "a turn without speaker": (
        changed(locomo, [0, "conversation", "session_2", 3], {"dia_id": "D2:4"}),
        "record 1: conversation.session_2.3.speaker: Field required",
    ),
    "a session without time": (
        changed(locomo, [0, "conversation", "session_2_date_time"], None),
        "record 1: conversation.session_2_date_time: None is no time like '01:56 PM on 08 May",
    ),
    "a session too few": (
        changed(longmemeval, [1, "haystack_sessions"], []),
        "record 2: haystack_session_ids, haystack_dates and haystack_sessions differ in length",
    ),
    "a strange date": (
        changed(longmemeval, [2, "haystack_dates", 0], "May 2023"),
        "record 3: haystack_dates.0: 'May 2023' is no time like '2023/05/08 (Mon) 13:56'",
    ),
    "no types": (
        changed(longmemeval, [0, "question_type"], None),
        "record 1: question_type: Input should be a valid string",
    ),
}


@pytest.mark.parametrize(("text", "said"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_file_is_refused_with_the_place(tmp_path, capsys, text, said):
    file = tmp_path / "data.json"
    file.write_text(text)
    assert main([str(file)]) == 2
    assert f"eval-memory: {file}: {said}" in capsys.readouterr().err


def test_a_file_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"nothing\.json: cannot be read: No such file"):
        read_conversations(tmp_path / "nothing.json")


def test_measures_count_part_any_and_all():
    assert measures({"a", "b"}, ["c", "a", "a"]) == (0.5, 1.0, 0.0)
    assert measures({"a"}, ["a"]) == (1.0, 1.0, 1.0)
    assert measures({"a"}, []) == (0.0, 0.0, 0.0)


def test_the_report_has_categories_cutoffs_and_latency():
    def asked(category, turns, sessions, found, took, *, degraded=False):
        question = Question("?", category, frozenset(turns), frozenset(sessions))
        return Asked(question, found, [name[0] for name in found], took, degraded)

    far = ["b1", "b2", "b3", "b4", "b5", "a1"]
    lines = report(
        [],
        [
            asked("first", ["a1", "c1"], ["a", "c"], far, 10.0),
            asked("first", ["a1"], ["a"], ["a1"], 20.0),
            asked("second", [], ["a"], ["b1"], 30.0, degraded=True),
        ],
    )
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in lines if "|" in line}
    assert [cell.strip() for cell in rows["first"]] == [
        "2",
        "0.500 / 0.500 / 0.500",
        "0.750 / 1.000 / 0.500",
        "0.500 / 0.500 / 0.500",
        "0.750 / 1.000 / 0.500",
    ]
    assert [cell.strip() for cell in rows["second"]][:2] == ["1", "-"]
    assert [cell.strip() for cell in rows["all"]][-1] == "0.500 / 0.667 / 0.333"
    assert "latency of a query: p50 20.0 ms, p95 29.0 ms" in lines
    assert lines[-1].startswith("NOT VALID")
    assert lines[-1].endswith("degraded answers: 1")


async def test_a_run_stores_in_order_with_the_times_and_compares_with_the_evidence(
    memory: Memory, client: EvaluatedMemory, files, database_urls
):
    said: list[str] = []
    conversations = read_conversations(files["locomo"])
    found = await evaluate(client, conversations, said.append, keep=True)
    microdao = said[-1].split()[2]
    assert await stored(database_urls) == 16
    tenant = {"microdao_id": microdao, "agent_id": evaluation.AGENT, "limit": 100}
    items = succeeded(await memory.client.get("/items", params=tenant))["items"]
    assert [item["meta"]["turn"] for item in reversed(items)] == [
        turn.id for turn in conversations[0].turns
    ]
    assert [datetime.fromisoformat(item["meta"]["timestamp"]) for item in reversed(items)] == [
        turn.at for turn in conversations[0].turns
    ]
    assert {item["kind"] for item in items} == {"conversation"}
    by_category = {one.question.category: one for one in found}
    assert by_category["4 single-hop"].turns[0] == "D1:2"
    assert set(by_category["1 multi-hop"].turns[:5]) >= {"D10:1", "D10:2"}
    assert len(by_category["2 temporal"].turns) == 10
    assert "D1:1" not in by_category["2 temporal"].turns
    assert not any(one.is_degraded for one in found)


@pytest.mark.parametrize("name", ["locomo", "longmemeval"])
async def test_the_command_prints_the_table_and_erases_what_it_stored(
    memory: Memory, url: str, files, name, capsys, database_urls
):
    assert await asyncio.to_thread(main, [str(files[name]), "--ingress", url]) == 0
    printed = capsys.readouterr()
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in printed.out.splitlines()
        if line.startswith("| ")
    }
    if name == "locomo":
        assert rows["4 single-hop"] == ["1", *["1.000 / 1.000 / 1.000"] * 4]
        assert rows["2 temporal"][2] == "0.000 / 0.000 / 0.000"
        assert "conversations 1, turns 16, questions 3" in printed.out
        assert "left out: adversarial 1, without evidence 1" in printed.out
    else:
        assert rows["single-session-user"] == ["1", *["1.000 / 1.000 / 1.000"] * 4]
        assert rows["multi-session"] == ["1", "-", "-", *["1.000 / 1.000 / 1.000"] * 2]
        assert "count for sessions alone: 1" in printed.out
        assert "left out: abstention 1" in printed.out
    assert "latency of a query: p50 " in printed.out
    assert "erased 1 of " in printed.err
    assert await stored(database_urls) == 0


async def test_what_was_stored_is_erased_when_the_embedder_stays_away(
    memory: Memory,
    client: EvaluatedMemory,
    embedder: HashingEmbedder,
    files,
    monkeypatch,
    database_urls,
):
    monkeypatch.setattr(evaluation, "INDEX_WAIT_S", 0.2)
    monkeypatch.setattr(evaluation, "INDEX_WAITS", 2)
    embedder.go_away()
    said: list[str] = []
    with pytest.raises(evaluation.NotIndexed, match="is the embedder ready"):
        await evaluate(client, read_conversations(files["locomo"]), said.append)
    assert "stored 1 of 1: conv-1" in said
    assert await stored(database_urls) == 0


async def test_what_was_stored_is_erased_when_the_run_is_interrupted(
    memory: Memory, client: EvaluatedMemory, files, database_urls
):
    """Ctrl-C cancels the run, as here when the first conversation is stored."""
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("stored"):
            run.cancel()

    run = asyncio.create_task(evaluate(client, read_conversations(files["longmemeval"]), say))
    with pytest.raises(asyncio.CancelledError):
        await run
    assert not any(line.startswith("asked") for line in said)
    assert await stored(database_urls) == 0


async def test_who_may_not_erase_learns_it_before_anything_is_stored(
    memory: Memory, events, files, database_urls
):
    prefix, access = evaluation.PREFIX, access_control("internal", "admin")
    said: list[str] = []
    async with served(ingress(memory.runtime, events, access), root_path=prefix) as base:
        for secret in ("internal", "admin"):
            client = EvaluatedMemory(base.removesuffix(prefix), presenting(secret))
            try:
                if secret == "internal":
                    with pytest.raises((Unauthorized, Forbidden)):
                        await evaluate(client, read_conversations(files["locomo"]), said.append)
                    assert said == []
                else:
                    found = await evaluate(client, read_conversations(files["locomo"]), said.append)
                    assert len(found) == 3
            finally:
                await client.close()
    assert await stored(database_urls) == 0


async def test_degraded_answers_are_no_figures(
    url: str, files, embedder: HashingEmbedder, monkeypatch, capsys
):
    async def away(*_: object) -> None:
        embedder.go_away()

    monkeypatch.setattr(evaluation, "_wait_indexed", away)
    assert await asyncio.to_thread(main, [str(files["locomo"]), "--ingress", url]) == 1
    assert "degraded answers: 3" in capsys.readouterr().out


def test_without_a_graph_the_command_says_so_at_once(files, capsys):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # nobody listens on it
        ingress_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert main([str(files["locomo"]), "--ingress", ingress_url]) == 2
    assert "eval-memory: the graph cannot be reached" in capsys.readouterr().err


def test_the_target_asks_for_the_file_before_it_installs_anything(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    done = subprocess.run(
        ["make", "--no-print-directory", "eval-memory"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "make eval-memory DATA=" in done.stdout
    assert not (tmp_path / ".venv").exists()
