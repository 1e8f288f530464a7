"""The SQL of the ledger of tool calls. Parameters are named as the fields of the contracts.

`synchronous_commit` is off for what a crash of the database may lose: the end of a call, never the
beginning of a `write`, which then ends as indeterminate.
"""

FIND = """
SELECT calls.id, calls.microdao_id, calls.tool_version, calls.effect, calls.fingerprint,
       calls.state, calls.attempt,
       calls.state = 'running' AND calls.leased_until < now() AS expired,
       calls.approval, calls.approval_digest,
       coalesce(calls.approved_until < now(), true) AS approval_ended,
       results.expires_at AS result_kept_until,
       calls.ok, calls.error_kind, calls.error, coalesce(calls.details, '{}') AS details,
       coalesce(calls.retryable, false) AS retryable,
       coalesce(calls.effect_possible, false) AS effect_possible, calls.tier,
       coalesce(calls.executor_attempts, 0) AS attempts,
       coalesce(calls.duration_ms, 0) AS duration_ms, results.body, results.items
FROM tool_calls AS calls
LEFT JOIN tool_results AS results
       ON results.id = calls.id AND results.microdao_id = calls.microdao_id
WHERE calls.microdao_id = %(microdao_id)s AND calls.call_id = %(call_id)s
  AND calls.state <> 'refused'
"""

# For a call that begins, waits for approval or is refused. A refused one takes no `call_id`.
INSERT = """
INSERT INTO tool_calls (
    id, microdao_id, call_id, agent_id, channel_id, tool_id, tool_version, effect, via, request_id,
    fingerprint, rule, args, keep_args, context, approval_digest,
    trace_id, state, leased_by, leased_until, ok, error_kind, error, retryable, settled_at
)
VALUES (
    %(id)s, %(microdao_id)s, %(call_id)s, %(agent_id)s, %(channel_id)s, %(tool_id)s,
    %(tool_version)s, %(effect)s, %(via)s, %(request_id)s,
    %(fingerprint)s, %(rule)s, %(args)s, %(keep_args)s, %(context)s, %(approval_digest)s,
    %(trace_id)s,
    %(state)s, %(leased_by)s, now() + make_interval(secs => %(lease_s)s),
    %(ok)s, %(error_kind)s, %(error)s, %(retryable)s,
    CASE WHEN %(state)s = 'refused' THEN now() END
)
ON CONFLICT DO NOTHING
RETURNING id, CASE WHEN state = 'refused' OR (state = 'running' AND effect <> 'write')
                   THEN set_config('synchronous_commit', 'off', true) END
"""

TAKE_OVER = """
UPDATE tool_calls
SET state = 'running', leased_by = %(leased_by)s,
    leased_until = now() + make_interval(secs => %(lease_s)s),
    attempt = attempt + CASE WHEN state = 'awaiting_approval' THEN 0 ELSE 1 END,
    ok = NULL, error_kind = NULL, error = NULL, details = NULL, retryable = NULL,
    effect_possible = NULL, settled_at = NULL, context = NULL
WHERE microdao_id = %(microdao_id)s AND id = %(id)s
  AND attempt = %(attempt)s AND state = %(state)s
  AND (state <> 'running' OR leased_until < now())
  AND (state <> 'awaiting_approval' OR (approval = 'granted' AND approved_until >= now()))
RETURNING attempt
"""

SETTLE = """
WITH settled AS (
    UPDATE tool_calls
    SET state = 'settled', ok = %(ok)s, error_kind = %(error_kind)s, error = %(error)s,
        details = %(details)s, retryable = %(retryable)s, effect_possible = %(effect_possible)s,
        tier = %(tier)s, executor_attempts = %(attempts)s, duration_ms = %(duration_ms)s,
        result_bytes = %(result_bytes)s, result_shown = %(audit_result)s, settled_at = now(),
        args = CASE WHEN keep_args THEN args END
    WHERE microdao_id = %(microdao_id)s AND id = %(id)s AND attempt = %(attempt)s
      AND state = 'running'
    RETURNING id, set_config('synchronous_commit', 'off', true)
), stored AS (
    INSERT INTO tool_results (id, microdao_id, body, items, expires_at)
    SELECT settled.id, %(microdao_id)s, %(body)s, %(items)s,
           now() + make_interval(secs => %(keep_s)s)
    FROM settled WHERE %(body)s::text IS NOT NULL
)
SELECT id FROM settled
"""

# For a `read`, which is not claimed: its failure that may pass gives way to a later run.
RECORD = """
WITH settled AS (
    INSERT INTO tool_calls AS calls (
        id, microdao_id, call_id, agent_id, channel_id, tool_id, tool_version, effect, via,
        request_id, fingerprint, rule, args, keep_args, context, approval_digest,
        trace_id, ok, error_kind, error, details, retryable, effect_possible, tier,
        executor_attempts, duration_ms, result_bytes, result_shown, state, started_at, settled_at
    )
    VALUES (
        %(id)s, %(microdao_id)s, %(call_id)s, %(agent_id)s, %(channel_id)s, %(tool_id)s,
        %(tool_version)s, %(effect)s, %(via)s,
        %(request_id)s, %(fingerprint)s, %(rule)s, %(args)s, %(keep_args)s, %(context)s,
        %(approval_digest)s, %(trace_id)s,
        %(ok)s, %(error_kind)s, %(error)s, %(details)s, %(retryable)s, %(effect_possible)s,
        %(tier)s, %(attempts)s, %(duration_ms)s, %(result_bytes)s, %(audit_result)s, 'settled',
        now() - make_interval(secs => %(duration_ms)s / 1000), now()
    )
    ON CONFLICT (microdao_id, call_id) WHERE state <> 'refused' DO UPDATE
    SET ok = excluded.ok, error_kind = excluded.error_kind, error = excluded.error,
        details = excluded.details, retryable = excluded.retryable,
        effect_possible = excluded.effect_possible, tier = excluded.tier,
        executor_attempts = excluded.executor_attempts, duration_ms = excluded.duration_ms,
        result_bytes = excluded.result_bytes, result_shown = excluded.result_shown,
        settled_at = now(), attempt = calls.attempt + 1, trace_id = excluded.trace_id
    WHERE calls.state = 'settled' AND NOT calls.ok AND calls.retryable AND calls.effect = 'read'
      AND calls.fingerprint = excluded.fingerprint
    RETURNING id, set_config('synchronous_commit', 'off', true)
), stored AS (
    INSERT INTO tool_results (id, microdao_id, body, items, expires_at)
    SELECT settled.id, %(microdao_id)s, %(body)s, %(items)s,
           now() + make_interval(secs => %(keep_s)s)
    FROM settled WHERE %(body)s::text IS NOT NULL
)
SELECT id FROM settled
"""

DECIDE_APPROVAL = """
UPDATE tool_calls
SET approval = %(approval)s,
    approved_until = CASE WHEN %(approval)s = 'granted'
                          THEN now() + make_interval(secs => %(valid_s)s) END
WHERE microdao_id = %(microdao_id)s AND call_id = %(call_id)s AND state = 'awaiting_approval'
  AND (approval IS NULL OR (approval = 'granted' AND coalesce(approved_until < now(), true)))
RETURNING id
"""

RENEW = "SELECT tool_calls_renew(%(leased_by)s, %(held)s, %(lease_s)s) AS held"
SETTLE_ABANDONED = "SELECT * FROM tool_calls_settle_abandoned(%(grace_s)s, %(at_most)s)"
PURGE = "SELECT tool_calls_purge(make_interval(days => %(days)s), %(at_most)s) AS removed"
PURGE_VERSIONS = (
    "SELECT tool_versions_purge(make_interval(days => %(days)s), %(at_most)s) AS removed"
)

READ_RESULT = """
SELECT id, body, items, expires_at FROM tool_results
WHERE microdao_id = %(microdao_id)s AND id = %(id)s AND expires_at > now()
"""

LIST = """
SELECT calls.id, calls.call_id, calls.agent_id, calls.microdao_id, calls.tool_id,
       calls.tool_version, calls.effect, calls.via, calls.request_id,
       encode(calls.fingerprint, 'hex') AS args_hash, calls.rule, calls.state, calls.ok,
       calls.error_kind, calls.error, calls.retryable, calls.effect_possible, calls.tier,
       calls.attempt, calls.executor_attempts AS attempts, calls.duration_ms, calls.result_bytes,
       calls.trace_id, calls.started_at, calls.settled_at, calls.approval, calls.approved_until,
       CASE WHEN calls.keep_args OR %(show_waiting)s THEN calls.args END AS args,
       CASE WHEN %(show_waiting)s THEN calls.context END AS context,
       CASE WHEN calls.result_shown
            THEN (SELECT results.body FROM tool_results AS results WHERE results.id = calls.id)
            END AS result
FROM tool_calls AS calls
WHERE calls.microdao_id = %(microdao_id)s
  AND (%(agent_id)s::text IS NULL OR calls.agent_id = %(agent_id)s)
  AND (%(tool_id)s::text IS NULL OR calls.tool_id = %(tool_id)s)
  AND (%(call_id)s::text IS NULL OR calls.call_id = %(call_id)s)
  AND (%(state)s::text IS NULL OR calls.state = %(state)s)
  AND (%(error_kind)s::text IS NULL OR calls.error_kind = %(error_kind)s)
  AND (%(start)s::timestamptz IS NULL OR calls.started_at >= %(start)s)
  AND (%(end)s::timestamptz IS NULL OR calls.started_at < %(end)s)
  AND (%(cursor)s::uuid IS NULL OR calls.id < %(cursor)s)
ORDER BY calls.id DESC
LIMIT %(limit)s
"""
