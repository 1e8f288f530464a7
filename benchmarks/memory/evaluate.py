"""`make eval-memory DATA=file`: recall of the running graph's memory on LoCoMo or LongMemEval.

Stores each conversation through the API in a microDAO of its own, waits until all of it is indexed,
asks every question, compares what is found with the dataset's evidence, and erases the microDAOs.
docs/evaluation.md has the protocol.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any

from backends.http.client import ServiceClient, presenting
from benchmarks.memory.datasets import Conversation, DatasetError, Question, read_conversations
from common.tasks import end_tasks
from configs.environment import read_environment
from contracts.deadline import Deadline
from contracts.errors import DaarionError
from contracts.memory.api import QueryResponse, StoreResponse

PREFIX = "/internal/agent-memory"
AGENT = "agent:eval"
CUTOFFS = (5, 10)
AT_ONCE = 4
MOST_AT_ONCE = 32
CALL_S = 120.0
PATIENCE_S = 60.0
INDEX_WAIT_S = 30.0
INDEX_WAITS = 20
LEVELS = ("turn", "session")

Say = Callable[[str], None]


class NotIndexed(Exception):
    """The graph did not embed what was stored; the message says what to look at."""


@dataclass(frozen=True)
class Tenancy:
    """Where one conversation is stored."""

    conversation: Conversation
    microdao: str
    channel: str

    @property
    def body(self) -> dict[str, Any]:
        """The fields that every call has."""
        return {"microdao_id": self.microdao, "agent_id": AGENT}


@dataclass(frozen=True)
class Asked:
    """A question, the turns and sessions of the items found, best first, and how long it took."""

    question: Question
    turns: list[str]
    sessions: list[str]
    milliseconds: float
    is_degraded: bool


class EvaluatedMemory(ServiceClient):
    """The routes that the evaluation needs, over the graph's ingress."""

    service = "the graph"

    async def store(self, where: Tenancy, place: int, *, wait_s: float = 0.0) -> bool:
        """Stores one turn, or recognises it, and returns whether it is indexed."""
        turn = where.conversation.turns[place]
        answer = await self._ask(
            f"{PREFIX}/store",
            Deadline.after(CALL_S),
            body={
                **where.body,
                "kind": "conversation",
                "channel_id": where.channel,
                "content": {"text": turn.text},
                "meta": {"turn": turn.id, "session": turn.session},
                "created_at": turn.at.isoformat(),
                "wait_indexed_s": wait_s,
            },
            patience_s=PATIENCE_S,
        )
        return self._read(answer, StoreResponse, "an id").indexed

    async def ask(self, where: Tenancy, question: Question) -> Asked:
        """Asks one question."""
        body = {
            **where.body,
            "query": question.text,
            "limit": CUTOFFS[-1],
            "kinds": ["conversation"],
        }
        if question.asked_at is not None:
            body["until"] = question.asked_at.isoformat()
        began = time.perf_counter()
        answer = await self._ask(
            f"{PREFIX}/query", Deadline.after(CALL_S), body=body, patience_s=PATIENCE_S
        )
        took = (time.perf_counter() - began) * 1e3
        found = self._read(answer, QueryResponse, "items")
        return Asked(
            question,
            [item.meta["turn"] for item in found.items],
            [item.meta["session"] for item in found.items],
            took,
            bool(found.degraded),
        )

    async def erase(self, microdao: str, *, patience_s: float = PATIENCE_S) -> None:
        """Erases a microDAO. Raises DaarionError."""
        body = {"microdao_id": microdao}
        await self._ask(f"{PREFIX}/erase", Deadline.after(CALL_S), body=body, patience_s=patience_s)


async def evaluate(
    memory: EvaluatedMemory,
    conversations: Sequence[Conversation],
    say: Say,
    *,
    at_once: int = AT_ONCE,
    keep: bool = False,
) -> list[Asked]:
    """Returns every question with what was found.

    Stores `at_once` conversations at a time, each turn after the one before; questions are asked
    one at a time, so that their latency is a single caller's.

    Raises:
        DaarionError: a call was refused, or the graph stayed away.
        NotIndexed: a turn was not embedded in time.
    """
    run = secrets.token_hex(4)
    tenancies = [
        Tenancy(conversation, f"microdao:eval-{run}-{number}", f"channel:eval-{run}-{number}")
        for number, conversation in enumerate(conversations, 1)
    ]
    if not keep:  # who may not erase, or reaches no graph, learns it now, not after hours
        await memory.erase(tenancies[0].microdao, patience_s=0)
    try:
        await _each(tenancies, lambda one: _store(memory, one), at_once, "stored", say)
        await _each(tenancies, lambda one: _wait_indexed(memory, one), at_once, "indexed", say)
        asked: list[Asked] = []

        async def ask(one: Tenancy) -> None:
            asked.extend([await memory.ask(one, found) for found in one.conversation.questions])

        await _each(tenancies, ask, 1, "asked", say)
        return asked
    finally:
        if keep:
            say(f"kept in microdao:eval-{run}-1 to -{len(tenancies)}")
        else:
            say(f"erasing microdao:eval-{run}-1 to -{len(tenancies)}")
            await _each(tenancies, lambda one: memory.erase(one.microdao), at_once, "erased", say)


async def _store(memory: EvaluatedMemory, where: Tenancy) -> None:
    for place in range(len(where.conversation.turns)):
        await memory.store(where, place)


async def _wait_indexed(memory: EvaluatedMemory, where: Tenancy) -> None:
    """Stores every turn again, which changes nothing and waits for its vector."""
    for place in range(len(where.conversation.turns)):
        for _ in range(INDEX_WAITS):
            if await memory.store(where, place, wait_s=INDEX_WAIT_S):
                break
        else:
            raise NotIndexed(
                f"a turn has no vector after {INDEX_WAITS * INDEX_WAIT_S:.0f} s: "
                "is the embedder ready (make status)?"
            )


async def _each(
    tenancies: Sequence[Tenancy],
    work: Callable[[Tenancy], Awaitable[None]],
    at_once: int,
    done: str,
    say: Say,
) -> None:
    slots, finished = asyncio.Semaphore(at_once), 0

    async def one(tenancy: Tenancy) -> None:
        nonlocal finished
        async with slots:
            await work(tenancy)
        finished += 1
        say(f"{done} {finished} of {len(tenancies)}: {tenancy.conversation.id}")

    tasks = [asyncio.ensure_future(one(tenancy)) for tenancy in tenancies]
    try:
        await asyncio.gather(*tasks)
    finally:
        await end_tasks(tasks)


def measures(evidence: Collection[str], found: Sequence[str]) -> tuple[float, float, float]:
    """Returns the part of the evidence that was found, whether any was, and whether all was."""
    part = len(set(evidence).intersection(found)) / len(evidence)
    return part, float(part > 0), float(part == 1)


def table(asked: Sequence[Asked]) -> list[str]:
    """Returns a Markdown table: a row a category, recall / any / all at each cutoff."""
    heads = [f"{level}s @{cutoff}" for level in LEVELS for cutoff in CUTOFFS]
    rows = [["recall / any / all", "questions", *heads]]
    for category in [*sorted({one.question.category for one in asked}), "all"]:
        members = [one for one in asked if category in {one.question.category, "all"}]
        cells = []
        for level in LEVELS:
            for cutoff in CUTOFFS:
                scored = [
                    measures(evidence, getattr(one, f"{level}s")[:cutoff])
                    for one in members
                    if (evidence := getattr(one.question, f"{level}s"))
                ]
                means = [fmean(column) for column in zip(*scored, strict=True)]
                cells.append(" / ".join(f"{mean:.3f}" for mean in means) or "-")
        rows.append([category, str(len(members)), *cells])
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"
        for row in rows
    ]
    return [lines[0], f"|{'|'.join('-' * (width + 2) for width in widths)}|", *lines[1:]]


def report(conversations: Sequence[Conversation], asked: Sequence[Asked]) -> list[str]:
    """Returns the lines of the report."""
    turns = sum(len(one.turns) for one in conversations)
    left_out = sum((one.left_out for one in conversations), Counter[str]())
    named = ", ".join(f"{name} {count}" for name, count in sorted(left_out.items())) or "none"
    lines = [
        f"conversations {len(conversations)}, turns {turns}, questions {len(asked)}",
        f"left out: {named}",
        "",
        *table(asked),
        "",
    ]
    if unmarked := sum(not one.question.turns for one in asked):
        lines.append(f"questions without a marked turn, which count for sessions alone: {unmarked}")
    took = [one.milliseconds for one in asked]
    cuts = quantiles(took, n=20, method="inclusive") if len(took) > 1 else took * 19
    lines.append(f"latency of a query: p50 {cuts[9]:.1f} ms, p95 {cuts[18]:.1f} ms")
    if degraded := sum(one.is_degraded for one in asked):
        lines.append(f"NOT VALID: an arm of the search was away, degraded answers: {degraded}")
    return lines


def main(argv: Sequence[str]) -> int:
    """Returns 0, 1 for figures that are not valid, 2 where there are none."""
    parser = argparse.ArgumentParser(
        prog="make eval-memory", description="Recall of the running graph's memory on a public set."
    )
    parser.add_argument("data", type=Path, help="the JSON file of LoCoMo or LongMemEval")
    parser.add_argument("--ingress", help="the graph's URL, by default this machine's")
    parser.add_argument("--limit", type=int, help="only so many conversations")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="conversations stored at once")
    parser.add_argument("--keep", action="store_true", help="do not erase what was stored")
    given = parser.parse_args(argv)
    if not 1 <= given.at_once <= MOST_AT_ONCE or (given.limit is not None and given.limit < 1):
        parser.error(f"--at-once is from 1 to {MOST_AT_ONCE}, --limit at least 1")
    try:
        conversations = read_conversations(given.data)[: given.limit]
        asked = asyncio.run(_evaluated(given, conversations))
    except (DatasetError, NotIndexed) as error:
        print(f"eval-memory: {error}", file=sys.stderr)
        return 2
    except DaarionError as error:
        print(f"eval-memory: {error.message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print("\n".join(report(conversations, asked)))
    return int(any(one.is_degraded for one in asked))


async def _evaluated(given: argparse.Namespace, conversations: list[Conversation]) -> list[Asked]:
    if not any(one.questions for one in conversations):
        raise DatasetError(f"{given.data}: has no question to ask")
    environment = read_environment()
    memory = EvaluatedMemory(
        given.ingress or environment.ingress_url,
        presenting(environment.admin_secret or environment.internal_secret),
    )
    try:
        return await evaluate(
            memory,
            conversations,
            lambda line: print(line, file=sys.stderr, flush=True),
            at_once=given.at_once,
            keep=given.keep,
        )
    finally:
        await memory.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
