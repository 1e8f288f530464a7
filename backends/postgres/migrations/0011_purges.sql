-- Purges find what is due by an index, oldest first, pass over what another replica is removing, and take a bounded number of rows:
-- each call is a transaction; the caller repeats while a call removes `at_most` rows.

DROP INDEX tool_calls_by_time;
CREATE INDEX tool_calls_ended ON tool_calls (started_at) WHERE state <> 'running';
DROP INDEX channel_events_by_time;
CREATE INDEX channel_events_by_time ON channel_events (created_at);
CREATE INDEX memory_events_by_age ON memory_events (microdao_id, agent_id, recorded_at);

CREATE OR REPLACE FUNCTION tool_calls_purge(calls_older_than interval, at_most integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    results bigint;
    calls bigint;
BEGIN
    DELETE FROM tool_results WHERE id IN (
        SELECT id FROM tool_results WHERE expires_at < now() ORDER BY expires_at LIMIT at_most FOR UPDATE SKIP LOCKED
    );
    GET DIAGNOSTICS results = ROW_COUNT;
    DELETE FROM tool_calls WHERE id IN (
        SELECT id FROM tool_calls WHERE started_at < now() - calls_older_than AND state <> 'running'
        ORDER BY started_at LIMIT at_most FOR UPDATE SKIP LOCKED
    );
    GET DIAGNOSTICS calls = ROW_COUNT;
    RETURN results + calls;
END
$$;

CREATE OR REPLACE FUNCTION agent_runs_purge(older_than interval, at_most integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    gone bigint;
BEGIN
    DELETE FROM agent_runs WHERE (microdao_id, id) IN (
        SELECT microdao_id, id FROM agent_runs WHERE state = 'done' AND finished_at < now() - older_than
        ORDER BY finished_at LIMIT at_most FOR UPDATE SKIP LOCKED
    );
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END
$$;

CREATE OR REPLACE FUNCTION messaging_purge(older_than interval, at_most integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    events bigint;
    settled bigint;
BEGIN
    DELETE FROM channel_events WHERE (channel_id, position) IN (
        SELECT channel_id, position FROM channel_events WHERE created_at < now() - older_than
        ORDER BY created_at LIMIT at_most FOR UPDATE SKIP LOCKED
    );
    GET DIAGNOSTICS events = ROW_COUNT;
    DELETE FROM invocation_outbox WHERE id IN (
        SELECT id FROM invocation_outbox WHERE state <> 'pending' AND settled_at < now() - older_than
        ORDER BY settled_at LIMIT at_most FOR UPDATE SKIP LOCKED
    );
    GET DIAGNOSTICS settled = ROW_COUNT;
    RETURN events + settled;
END
$$;

CREATE OR REPLACE FUNCTION llm_idempotency_purge(at_most integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    gone bigint;
BEGIN
    DELETE FROM llm_idempotency WHERE (microdao_id, key) IN (
        SELECT microdao_id, key FROM llm_idempotency WHERE expires_at < now()
        ORDER BY expires_at LIMIT at_most FOR UPDATE SKIP LOCKED
    );
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END
$$;

-- Old batches go until `at_most` of their items are gone: a batch has up to 10,000. Returns the items and the turns that went.
-- A turn is locked before it is looked whether a batch of its microDAO is open: a submission updates it first, so that neither
-- misses the other.
CREATE OR REPLACE FUNCTION llm_batch_purge(older_than_seconds double precision, at_most integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    idle text[];
    old uuid[];
    items bigint;
    turns bigint;
BEGIN
    SELECT array_agg(locked.microdao_id) INTO idle FROM (
        SELECT turns.microdao_id FROM llm_batch_turns AS turns
        WHERE NOT EXISTS (
            SELECT FROM llm_batches AS batches
            WHERE batches.microdao_id = turns.microdao_id AND batches.ended_at IS NULL AND batches.cancelled_at IS NULL
        )
        LIMIT at_most
        FOR UPDATE SKIP LOCKED
    ) AS locked;
    DELETE FROM llm_batch_turns AS turns
    WHERE turns.microdao_id = ANY (idle)
      AND NOT EXISTS (
          SELECT FROM llm_batches AS batches
          WHERE batches.microdao_id = turns.microdao_id AND batches.ended_at IS NULL AND batches.cancelled_at IS NULL
      );
    GET DIAGNOSTICS turns = ROW_COUNT;
    SELECT array_agg(batch.id), coalesce(sum(batch.total), 0) INTO old, items FROM (
        SELECT due.id, due.total, sum(due.total) OVER (ORDER BY due.created_at, due.id) - due.total AS before FROM (
            SELECT id, total, created_at FROM llm_batches
            WHERE created_at < now() - make_interval(secs => older_than_seconds)
            ORDER BY created_at LIMIT at_most
            FOR UPDATE SKIP LOCKED
        ) AS due
    ) AS batch WHERE batch.before < at_most;
    DELETE FROM llm_batches WHERE id = ANY (old);
    RETURN items + turns;
END
$$;

-- Replacing a function takes its settings away, and leaves its owner and its rights.
DO $$
DECLARE
    signature text;
BEGIN
    FOREACH signature IN ARRAY ARRAY[
        'tool_calls_purge(interval, integer)',
        'agent_runs_purge(interval, integer)',
        'messaging_purge(interval, integer)',
        'llm_idempotency_purge(integer)',
        'llm_batch_purge(double precision, integer)'
    ] LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', signature, current_schema());
    END LOOP;
END
$$;
