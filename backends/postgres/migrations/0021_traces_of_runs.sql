-- Traces: a run and an invocation carry W3C's `traceparent`, so that whoever takes them over continues the trace that they began
-- in; a tool call names its trace, 32 hexadecimal digits.

ALTER TABLE agent_runs ADD COLUMN traceparent text;
ALTER TABLE tool_calls ADD COLUMN trace_id text;
ALTER TABLE invocation_outbox ADD COLUMN traceparent text;

DROP FUNCTION invocation_outbox_lease(uuid, double precision, integer);
CREATE FUNCTION invocation_outbox_lease(holder uuid, seconds double precision, at_most integer)
RETURNS TABLE (
    id uuid, microdao_id text, channel_id uuid, message_id uuid, agent_id text, attempts integer, age_s double precision, caller jsonb,
    traceparent text
)
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
        extract(epoch FROM now() - leased.created_at)::double precision, leased.caller, leased.traceparent
$$;

DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION invocation_outbox_lease(uuid, double precision, integer) SET search_path = %I, pg_temp', current_schema());
    REVOKE ALL ON FUNCTION invocation_outbox_lease(uuid, double precision, integer) FROM PUBLIC;
    GRANT EXECUTE ON FUNCTION invocation_outbox_lease(uuid, double precision, integer) TO daarion_service;
END
$$;
