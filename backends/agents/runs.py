"""Runs of agents in PostgreSQL: one per trigger, worked on under a lease.

A replica that finds an expired lease takes the run over.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import orjson
from psycopg.rows import DictRow

from backends.postgres.leases import renew
from backends.postgres.pages import read_page
from backends.postgres.pool import Database
from backends.postgres.purging import purge
from contracts.agents.invocations import AgentInvocation
from contracts.agents.runs import NewRun, Outcome, Run, RunQuery, RunView, StepRecord
from contracts.errors import DatabaseUnavailable
from contracts.events import EventLog
from contracts.identity import Page

OTHER_AGENTS_AFTER_S = 600.0
"""A run of an agent that this process does not know is left that long to those who know it."""
UNREADABLE_S = 600.0

# The second insert of a trigger waits for the first one's transaction and then finds its row.
ACCEPT = """
INSERT INTO agent_runs (
    id, microdao_id, agent_id, channel_id, trigger_id, invocation, caller, nonce, traceparent,
    state, leased_by, leased_until
)
VALUES (
    %(id)s, %(microdao_id)s, %(agent_id)s, %(channel_id)s, %(trigger_id)s, %(invocation)s,
    %(caller)s, %(nonce)s, %(traceparent)s,
    'queued', %(leased_by)s, now() + make_interval(secs => %(lease_s)s)
)
ON CONFLICT ON CONSTRAINT agent_runs_one_per_trigger DO NOTHING
RETURNING *
"""
FIND_BY_TRIGGER = """
SELECT * FROM agent_runs
WHERE microdao_id = %(microdao_id)s AND agent_id = %(agent_id)s
    AND channel_id = %(channel_id)s AND trigger_id = %(trigger_id)s
"""
NOTE = """
UPDATE agent_runs
SET state = %(state)s, journal = %(journal)s, steps = %(steps)s, reply = %(reply)s,
    error = %(error)s, memory_ids = %(memory_ids)s, degraded = %(degraded)s, model = %(model)s,
    prompt_tokens = %(prompt_tokens)s, completion_tokens = %(completion_tokens)s,
    tool_calls = %(tool_calls)s, started_at = coalesce(started_at, now()),
    leased_until = now() + make_interval(secs => %(lease_s)s),
    posting_since = coalesce(posting_since, CASE WHEN %(state)s = 'posting' THEN now() END)
WHERE microdao_id = %(microdao_id)s AND id = %(id)s AND leased_by = %(leased_by)s
    AND state <> 'done'
RETURNING id
"""
FINISH = """
UPDATE agent_runs
SET state = 'done', outcome = %(outcome)s, journal = '{}', invocation = %(invocation)s,
    steps = %(steps)s, reply = %(reply)s, error = %(error)s, memory_ids = %(memory_ids)s,
    degraded = %(degraded)s, model = %(model)s, prompt_tokens = %(prompt_tokens)s,
    completion_tokens = %(completion_tokens)s, tool_calls = %(tool_calls)s,
    started_at = coalesce(started_at, now()), finished_at = now()
WHERE microdao_id = %(microdao_id)s AND id = %(id)s AND leased_by = %(leased_by)s
    AND state <> 'done'
RETURNING id
"""
RELEASE = """
UPDATE agent_runs
SET leased_by = NULL, leased_until = now() + make_interval(secs => %(delay_s)s)
WHERE microdao_id = %(microdao_id)s AND id = %(id)s AND leased_by = %(leased_by)s
    AND state <> 'done'
RETURNING id
"""
# Which runs may be taken is said in the function, see migrations/0014_leases.sql.
LEASE = """
SELECT *, extract(epoch FROM now() - posting_since) AS posting_s
FROM agent_runs_lease(%(leased_by)s, %(lease_s)s, %(at_most)s, %(agents)s, %(strangers_after)s)
"""
RENEW = "SELECT agent_runs_renew(%(leased_by)s, %(held)s, %(lease_s)s) AS held"
PURGE = "SELECT agent_runs_purge(%(older_than)s, %(at_most)s) AS removed"
FIND = "SELECT * FROM agent_runs WHERE microdao_id = %(microdao_id)s AND id = %(id)s"
PAGE = """
SELECT * FROM agent_runs
WHERE microdao_id = %(microdao_id)s
    AND (%(agent_id)s::text IS NULL OR agent_id = %(agent_id)s)
    AND (%(channel_id)s::text IS NULL OR channel_id = %(channel_id)s)
    AND (created_at, id) < (
        coalesce(%(after_time)s::timestamptz, 'infinity'::timestamptz), %(after_id)s::uuid
    )
ORDER BY created_at DESC, id DESC
LIMIT %(rows)s
"""


class PostgresRuns:
    """Implements RunStore for this process."""

    def __init__(self, database: Database, events: EventLog) -> None:
        self._database = database
        self._events = events
        self._leased_by = uuid4()

    async def accept(self, new: NewRun, lease_s: float) -> tuple[RunView, Run | None]:
        values = {
            "id": new.id,
            "microdao_id": new.microdao_id,
            "agent_id": new.agent_id,
            "channel_id": new.channel_id or "",
            "trigger_id": new.trigger_id,
            "invocation": new.invocation.model_dump_json(exclude_none=True),
            "caller": None if new.caller is None else orjson.dumps(new.caller).decode(),
            "nonce": new.nonce,
            "traceparent": new.traceparent,
            "leased_by": self._leased_by,
            "lease_s": lease_s,
        }
        async with self._database.transaction(microdao_id=new.microdao_id) as connection:
            row = await (await connection.execute(ACCEPT, values)).fetchone()
            if row is not None:
                return _view(row), _run(row)
            row = await (await connection.execute(FIND_BY_TRIGGER, values)).fetchone()
        if row is None:  # purged between the two statements
            raise DatabaseUnavailable("the run of this message was just removed: retry")
        return _view(row), None

    async def note(self, run: Run, lease_s: float) -> bool:
        journal = [orjson.dumps(entry).decode() for entry in run.journal]
        return await self._write(
            NOTE,
            run,
            {**_values(run), "state": run.state, "journal": journal, "lease_s": lease_s},
        )

    async def finish(self, run: Run, outcome: Outcome) -> bool:
        bare = run.invocation.payload.model_copy(update={"text": None, "rewrite_prompt": None})
        invocation = run.invocation.model_copy(update={"payload": bare}).model_dump_json(
            exclude_none=True
        )
        return await self._write(
            FINISH, run, {**_values(run), "outcome": outcome, "invocation": invocation}
        )

    async def release(self, run: Run, delay_s: float) -> bool:
        return await self._write(RELEASE, run, {"delay_s": delay_s})

    async def lease(self, lease_s: float, at_most: int, agents: Sequence[str]) -> list[Run]:
        values = {
            "leased_by": self._leased_by,
            "lease_s": lease_s,
            "at_most": at_most,
            "agents": list(agents),
            "strangers_after": OTHER_AGENTS_AFTER_S,
        }
        async with self._database.transaction() as connection:
            rows = await (await connection.execute(LEASE, values)).fetchall()
        return [run for row in rows if (run := await self._leased(row)) is not None]

    async def renew(self, runs: Collection[UUID], lease_s: float) -> None:
        await renew(self._database, RENEW, runs, leased_by=self._leased_by, lease_s=lease_s)

    async def find(self, microdao_id: str, run_id: UUID) -> RunView | None:
        values = {"microdao_id": microdao_id, "id": run_id}
        rows = await self._database.run(FIND, values, microdao_id=microdao_id)
        return _view(rows[0]) if rows else None

    async def page(self, query: RunQuery) -> Page[RunView]:
        filters = query.model_dump(exclude={"limit", "cursor"})
        rows, cursor = await read_page(
            self._database, "agent_runs", PAGE, filters, limit=query.limit, cursor=query.cursor
        )
        return Page(items=[_view(row, with_steps=False) for row in rows], next_cursor=cursor)

    async def purge(self, days: float) -> int:
        return await purge(self._database, PURGE, older_than=timedelta(days=days))

    async def _leased(self, row: DictRow) -> Run | None:
        """The run of a leased row. A row that this version cannot read is released for
        `UNREADABLE_S`: another version may read it.
        """
        try:
            run = _run(row)
        except (ValueError, TypeError, KeyError) as error:
            self._events.emit(
                "agents.run_unreadable", run_id=str(row["id"]), error=type(error).__name__
            )
            values = {
                "microdao_id": row["microdao_id"],
                "id": row["id"],
                "leased_by": self._leased_by,
                "delay_s": UNREADABLE_S,
            }
            await self._database.run(RELEASE, values, microdao_id=row["microdao_id"])
            return None
        run.claimed, run.posting_s = True, float(row["posting_s"] or 0.0)
        return run

    async def _write(self, statement: str, run: Run, values: dict[str, Any]) -> bool:
        identity = {"microdao_id": run.microdao_id, "id": run.id, "leased_by": self._leased_by}
        return bool(
            await self._database.run(statement, {**values, **identity}, microdao_id=run.microdao_id)
        )


def _values(run: Run) -> dict[str, Any]:
    return {
        "steps": [step.model_dump_json(exclude_none=True) for step in run.steps],
        "reply": run.reply,
        "error": run.error,
        "memory_ids": run.memory_ids,
        "degraded": run.degraded,
        "model": run.model,
        "prompt_tokens": run.prompt_tokens,
        "completion_tokens": run.completion_tokens,
        "tool_calls": run.tool_calls,
    }


def _run(row: DictRow) -> Run:
    return Run(
        id=row["id"],
        microdao_id=row["microdao_id"],
        agent_id=row["agent_id"],
        channel_id=row["channel_id"] or None,
        trigger_id=row["trigger_id"],
        invocation=AgentInvocation.model_validate(row["invocation"]),
        caller=row["caller"],
        nonce=row["nonce"],
        traceparent=row["traceparent"],
        state=row["state"],
        attempt=row["attempt"],
        created_at=row["created_at"],
        journal=[orjson.loads(entry) for entry in row["journal"]],
        steps=_steps(row),
        reply=row["reply"],
        error=row["error"],
        memory_ids=row["memory_ids"],
        degraded=row["degraded"],
        model=row["model"],
        prompt_tokens=row["prompt_tokens"],
        completion_tokens=row["completion_tokens"],
        tool_calls=row["tool_calls"],
        posting_since=row["posting_since"],
    )


def _view(row: DictRow, *, with_steps: bool = True) -> RunView:
    status = row["outcome"] or ("queued" if row["state"] == "queued" else "running")
    return RunView(
        id=row["id"],
        agent_id=row["agent_id"],
        microdao_id=row["microdao_id"],
        channel_id=row["channel_id"] or None,
        trigger_id=row["trigger_id"],
        entrypoint=row["invocation"]["entrypoint"],
        status=status,
        attempt=row["attempt"],
        model=row["model"],
        prompt_tokens=row["prompt_tokens"],
        completion_tokens=row["completion_tokens"],
        tool_calls=row["tool_calls"],
        memory_ids=row["memory_ids"],
        degraded=row["degraded"],
        error=row["error"],
        reply=row["reply"],
        trace_id=(row["traceparent"] or "")[3:35] or None,  # after the version, in hexadecimal
        steps=_steps(row) if with_steps else [],
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
    )


def _steps(row: DictRow) -> list[StepRecord]:
    return [StepRecord.model_validate_json(step) for step in row["steps"]]
