-- The audit trail. The service role adds rows and reads them; it can neither change nor remove one, nor choose its time. Old rows
-- go by a function of the owner, which keeps 30 days whatever it is asked. See docs/decisions/165-recorded-before-it-is-done.md.

CREATE TABLE audit_log (
    id          uuid PRIMARY KEY,
    created_at  timestamptz NOT NULL DEFAULT now(),
    principal   text NOT NULL,
    action      text NOT NULL,
    object      text NOT NULL,
    outcome     text NOT NULL CHECK (outcome IN ('started', 'success', 'failure', 'denied')),
    request_id  text,
    microdao_id text,
    agent_id    text,
    count       integer NOT NULL CHECK (count > 0)
);
CREATE INDEX audit_log_by_time ON audit_log (created_at, id);
CREATE INDEX audit_log_by_principal ON audit_log (principal, created_at, id);

GRANT SELECT, INSERT (id, principal, action, object, outcome, request_id, microdao_id, agent_id, count) ON audit_log TO daarion_service;

CREATE FUNCTION audit_log_purge(keep_days integer, at_most integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    gone bigint;
BEGIN
    IF keep_days IS NULL OR keep_days < 30 THEN
        RAISE EXCEPTION 'the audit trail is kept for 30 days at least' USING ERRCODE = 'insufficient_privilege';
    END IF;
    DELETE FROM audit_log WHERE id IN (
        SELECT id FROM audit_log WHERE created_at < now() - make_interval(days => keep_days)
        ORDER BY created_at LIMIT at_most FOR UPDATE SKIP LOCKED
    );
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END
$$;

DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION audit_log_purge(integer, integer) SET search_path = %I, pg_temp', current_schema());
    REVOKE ALL ON FUNCTION audit_log_purge(integer, integer) FROM PUBLIC;
    GRANT EXECUTE ON FUNCTION audit_log_purge(integer, integer) TO daarion_service;
END
$$;
