-- One vocabulary for leases: a row with `leased_until` in the past may be leased; `leased_by` is the process or the lease that
-- holds it, and is null while nobody does (a row that waits until then). Functions named `…_lease` take rows, `…_renew` return
-- what is still held. See docs/decisions/142-one-vocabulary-of-leases.md.

ALTER TABLE agent_runs RENAME COLUMN owner TO leased_by;
ALTER TABLE agent_runs RENAME COLUMN lease_until TO leased_until;
ALTER TABLE tool_calls RENAME COLUMN owner TO leased_by;
ALTER TABLE tool_calls RENAME COLUMN lease_until TO leased_until;
ALTER TABLE llm_batch_items RENAME COLUMN token TO leased_by;
ALTER TABLE llm_batch_items RENAME COLUMN due_at TO leased_until;
ALTER TABLE llm_idempotency RENAME COLUMN token TO leased_by;
ALTER TABLE llm_idempotency RENAME COLUMN lease_until TO leased_until;
ALTER TABLE invocation_outbox RENAME COLUMN owner TO leased_by;
ALTER TABLE invocation_outbox RENAME COLUMN due_at TO leased_until;
ALTER TABLE memory_queue RENAME COLUMN claimed_until TO leased_until;
ALTER TABLE memory_leases RENAME TO job_leases;
ALTER TABLE job_leases RENAME COLUMN holder TO leased_by;
ALTER TABLE job_leases ALTER COLUMN leased_by TYPE uuid USING leased_by::uuid;
ALTER TABLE job_leases RENAME COLUMN until TO leased_until;

DROP FUNCTION agent_runs_claim(uuid, double precision, integer, text[], double precision);
DROP FUNCTION agent_runs_extend(uuid, uuid[], double precision);
DROP FUNCTION tool_calls_extend_leases(uuid, uuid[], double precision);
DROP FUNCTION llm_batch_claim(double precision);
DROP FUNCTION llm_batch_extend_leases(uuid[], double precision);
DROP FUNCTION messaging_claim_invocations(uuid, integer, double precision);

-- A run of an agent that nobody knows is taken by whoever comes once it has lain for `strangers_after` seconds: somebody is waiting.
CREATE FUNCTION agent_runs_lease(
    holder uuid, seconds double precision, at_most integer, agents text[], strangers_after double precision
) RETURNS SETOF agent_runs
LANGUAGE sql SECURITY DEFINER AS $$
    WITH free AS MATERIALIZED (
        SELECT runs.microdao_id, runs.id FROM agent_runs AS runs
        WHERE runs.state <> 'done' AND runs.leased_until < now()
            AND (runs.agent_id = ANY (agents) OR runs.leased_until < now() - make_interval(secs => strangers_after))
        ORDER BY runs.leased_until
        LIMIT at_most
        FOR UPDATE SKIP LOCKED
    )
    UPDATE agent_runs AS runs
    SET leased_by = holder, leased_until = now() + make_interval(secs => seconds),
        attempt = runs.attempt + (runs.started_at IS NOT NULL)::integer
    FROM free
    WHERE runs.microdao_id = free.microdao_id AND runs.id = free.id
    RETURNING runs.*
$$;

CREATE FUNCTION agent_runs_renew(holder uuid, held uuid[], seconds double precision) RETURNS SETOF uuid
LANGUAGE sql SECURITY DEFINER AS $$
    UPDATE agent_runs SET leased_until = now() + make_interval(secs => seconds)
    WHERE id = ANY (held) AND leased_by = holder AND state <> 'done'
    RETURNING id
$$;

CREATE FUNCTION tool_calls_renew(holder uuid, held uuid[], seconds double precision) RETURNS SETOF uuid
LANGUAGE sql SECURITY DEFINER AS $$
    UPDATE tool_calls SET leased_until = now() + make_interval(secs => seconds)
    WHERE id = ANY (held) AND leased_by = holder AND state = 'running'
    RETURNING id
$$;

CREATE OR REPLACE FUNCTION tool_calls_settle_abandoned(grace_seconds double precision, at_most integer)
RETURNS TABLE (id uuid, call_id text, microdao_id text, agent_id text, tool_id text, effect text, error_kind text)
LANGUAGE sql SECURITY DEFINER AS $$
    WITH abandoned AS MATERIALIZED (
        SELECT calls.id FROM tool_calls AS calls
        WHERE calls.state = 'running' AND calls.leased_until < now() - make_interval(secs => grace_seconds)
        ORDER BY calls.leased_until
        LIMIT at_most
        FOR UPDATE SKIP LOCKED
    )
    UPDATE tool_calls AS calls
    SET state = 'settled',
        ok = false,
        error_kind = CASE WHEN calls.effect = 'write' THEN 'indeterminate' ELSE 'unavailable' END,
        error = CASE
            WHEN calls.effect = 'write' THEN 'the call was cut off: whether its effect happened is not known, and it is not run again'
            ELSE 'the call was cut off before its result was recorded: repeat it with the same call_id'
        END,
        retryable = calls.effect <> 'write',
        effect_possible = true,
        args = CASE WHEN calls.keep_args THEN calls.args END,
        settled_at = now()
    FROM abandoned
    WHERE calls.id = abandoned.id
    RETURNING calls.id, calls.call_id, calls.microdao_id, calls.agent_id, calls.tool_id, calls.effect, calls.error_kind
$$;

-- One due item of the microDAO that was served longest ago, of its batch that was served longest ago. An item whose lease is
-- over counts a failure. At most one row of llm_batches and then one of llm_batch_turns is locked, and always after the item's:
-- no two of these statements can wait for each other. Sub-selects with a limit, not EXISTS, which is planned as a join with
-- every waiting item: they end at the first hit.
CREATE FUNCTION llm_batch_items_lease(seconds double precision)
RETURNS TABLE (
    batch_id uuid, "position" integer, microdao_id text, request text, lease uuid, failures integer, stalled_s double precision
)
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    tenant text;
    candidate uuid;
BEGIN
    FOR tenant IN
        SELECT turns.microdao_id FROM llm_batch_turns AS turns
        WHERE (
            SELECT true FROM llm_batches AS batches
            WHERE batches.microdao_id = turns.microdao_id
              AND batches.ended_at IS NULL AND batches.cancelled_at IS NULL AND batches.resume_at <= now()
              AND (
                  SELECT true FROM llm_batch_items AS items
                  WHERE items.batch_id = batches.id AND items.state IN ('pending', 'running') AND items.leased_until <= now()
                  LIMIT 1
              )
            LIMIT 1
        )
        ORDER BY turns.served_at
        LIMIT 8
    LOOP
        FOR candidate IN
            SELECT batches.id FROM llm_batches AS batches
            WHERE batches.microdao_id = tenant
              AND batches.ended_at IS NULL AND batches.cancelled_at IS NULL AND batches.resume_at <= now()
              AND (
                  SELECT true FROM llm_batch_items AS items
                  WHERE items.batch_id = batches.id AND items.state IN ('pending', 'running') AND items.leased_until <= now()
                  LIMIT 1
              )
            ORDER BY batches.served_at
            LIMIT 8
        LOOP
            RETURN QUERY
                WITH due AS MATERIALIZED (
                    SELECT items.position FROM llm_batch_items AS items
                    WHERE items.batch_id = candidate AND items.state IN ('pending', 'running') AND items.leased_until <= now()
                    ORDER BY items.leased_until, items.position
                    LIMIT 1
                    FOR UPDATE SKIP LOCKED
                )
                UPDATE llm_batch_items AS items
                SET failures = items.failures + CASE WHEN items.state = 'running' THEN 1 ELSE 0 END,
                    state = 'running',
                    leased_by = gen_random_uuid(),
                    leased_until = now() + make_interval(secs => seconds)
                FROM due
                WHERE items.batch_id = candidate AND items.position = due.position
                RETURNING items.batch_id, items.position, items.microdao_id, items.request, items.leased_by, items.failures,
                          coalesce(extract(epoch FROM now() - items.stalled_since), 0)::double precision;
            IF FOUND THEN
                UPDATE llm_batches SET served_at = clock_timestamp() WHERE id = candidate;
                UPDATE llm_batch_turns AS turns SET served_at = clock_timestamp() WHERE turns.microdao_id = tenant;
                RETURN;
            END IF;
        END LOOP;
    END LOOP;
END
$$;

-- The lease of a cancelled batch's item is not renewed. Whoever works under a lease names it: one whose beginning or end was
-- lost on the way is named by nobody, and ends.
CREATE FUNCTION llm_batch_items_renew(held uuid[], seconds double precision) RETURNS SETOF uuid
LANGUAGE sql SECURITY DEFINER AS $$
    UPDATE llm_batch_items AS items
    SET leased_until = now() + make_interval(secs => seconds)
    FROM llm_batches AS batches
    WHERE items.leased_by = ANY (held) AND items.state = 'running' AND batches.id = items.batch_id AND batches.cancelled_at IS NULL
    RETURNING items.leased_by
$$;

-- Materialised, because a sub-select that skips locked rows finds others each time a join runs it again.
CREATE FUNCTION invocation_outbox_lease(holder uuid, seconds double precision, at_most integer)
RETURNS TABLE (id uuid, microdao_id text, channel_id uuid, message_id uuid, agent_id text, attempts integer, age_s double precision)
LANGUAGE sql SECURITY DEFINER AS $$
    WITH due AS MATERIALIZED (
        SELECT waiting.id FROM invocation_outbox AS waiting
        WHERE waiting.state = 'pending' AND waiting.leased_until <= now()
        ORDER BY waiting.leased_until
        LIMIT at_most
        FOR UPDATE SKIP LOCKED
    )
    UPDATE invocation_outbox AS leased
    SET leased_by = holder, attempts = leased.attempts + 1, leased_until = now() + make_interval(secs => seconds)
    FROM due
    WHERE leased.id = due.id
    RETURNING leased.id, leased.microdao_id, leased.channel_id, leased.message_id, leased.agent_id, leased.attempts,
        extract(epoch FROM now() - leased.created_at)::double precision
$$;

DO $$
DECLARE
    signature text;
BEGIN
    FOREACH signature IN ARRAY ARRAY[
        'agent_runs_lease(uuid, double precision, integer, text[], double precision)',
        'agent_runs_renew(uuid, uuid[], double precision)',
        'tool_calls_renew(uuid, uuid[], double precision)',
        'tool_calls_settle_abandoned(double precision, integer)',
        'llm_batch_items_lease(double precision)',
        'llm_batch_items_renew(uuid[], double precision)',
        'invocation_outbox_lease(uuid, double precision, integer)'
    ] LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', signature, current_schema());
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', signature);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO daarion_service', signature);
    END LOOP;
END
$$;
