-- Toolcore: the registry with its versions, the ledger of calls, results that are read by reference.

CREATE TABLE tools (
    tool_id    text PRIMARY KEY,
    version    integer NOT NULL CHECK (version > 0),
    enabled    boolean NOT NULL,
    origin     text NOT NULL CHECK (origin IN ('file', 'admin', 'source')),
    source     text,
    definition json NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE tool_versions (
    tool_id    text NOT NULL,
    version    integer NOT NULL,
    enabled    boolean NOT NULL,
    origin     text NOT NULL,
    source     text,
    definition json NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tool_id, version)
);

-- One row: writers lock it, readers see in one number whether anything changed.
CREATE TABLE tool_registry_revision (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    revision  bigint NOT NULL
);
INSERT INTO tool_registry_revision (revision) VALUES (1);

GRANT SELECT, INSERT, UPDATE ON tools TO daarion_service;
GRANT SELECT, INSERT ON tool_versions TO daarion_service;
GRANT SELECT, UPDATE ON tool_registry_revision TO daarion_service;

CREATE TABLE tool_calls (
    id                uuid PRIMARY KEY,
    microdao_id       text NOT NULL,
    call_id           text NOT NULL,
    agent_id          text NOT NULL,
    channel_id        text,
    tool_id           text NOT NULL,
    tool_version      integer,
    effect            text CHECK (effect IN ('read', 'idempotent', 'write')),
    via               text NOT NULL,
    request_id        text NOT NULL,
    fingerprint       bytea NOT NULL,
    rule              text NOT NULL,
    state             text NOT NULL CHECK (state IN ('refused', 'awaiting_approval', 'running', 'settled')),
    approval          text CHECK (approval IN ('granted', 'rejected')),
    attempt           integer NOT NULL DEFAULT 1,
    owner             uuid,
    lease_until       timestamptz,
    ok                boolean,
    error_kind        text,
    error             text,
    details           json,
    retryable         boolean,
    effect_possible   boolean,
    tier              text,
    executor_attempts integer,
    duration_ms       double precision,
    result_bytes      bigint,
    result_shown      boolean NOT NULL DEFAULT false,
    keep_args         boolean NOT NULL DEFAULT false,
    args              text,
    started_at        timestamptz NOT NULL DEFAULT now(),
    settled_at        timestamptz
);

CREATE UNIQUE INDEX tool_calls_identity ON tool_calls (microdao_id, call_id) WHERE state <> 'refused';
CREATE INDEX tool_calls_audit ON tool_calls (microdao_id, id DESC);
CREATE INDEX tool_calls_running ON tool_calls (lease_until) WHERE state = 'running';
CREATE INDEX tool_calls_by_time ON tool_calls USING brin (started_at);

CREATE TABLE tool_results (
    id          uuid PRIMARY KEY REFERENCES tool_calls (id) ON DELETE CASCADE,
    microdao_id text NOT NULL,
    body        text NOT NULL,
    items       integer,
    expires_at  timestamptz NOT NULL
);
CREATE INDEX tool_results_expiry ON tool_results (expires_at);

GRANT SELECT, INSERT, UPDATE ON tool_calls TO daarion_service;
GRANT SELECT, INSERT ON tool_results TO daarion_service;

ALTER TABLE tool_calls ENABLE ROW LEVEL SECURITY;
ALTER TABLE tool_calls FORCE ROW LEVEL SECURITY;
ALTER TABLE tool_results ENABLE ROW LEVEL SECURITY;
ALTER TABLE tool_results FORCE ROW LEVEL SECURITY;

CREATE POLICY own_microdao ON tool_calls TO daarion_service
    USING (microdao_id = current_setting('daarion.microdao_id', true))
    WITH CHECK (microdao_id = current_setting('daarion.microdao_id', true));
CREATE POLICY own_microdao ON tool_results TO daarion_service
    USING (microdao_id = current_setting('daarion.microdao_id', true))
    WITH CHECK (microdao_id = current_setting('daarion.microdao_id', true));

-- The three functions below do across microDAOs what no single one could ask for, and nothing else; they run as the owner.
CREATE POLICY upkeep ON tool_calls TO CURRENT_USER USING (true) WITH CHECK (true);
CREATE POLICY upkeep ON tool_results TO CURRENT_USER USING (true) WITH CHECK (true);

CREATE FUNCTION tool_calls_extend_leases(of_owner uuid, records uuid[], seconds double precision) RETURNS bigint
LANGUAGE sql SECURITY DEFINER AS $$
    WITH extended AS (
        UPDATE tool_calls SET lease_until = now() + make_interval(secs => seconds)
        WHERE id = ANY (records) AND owner = of_owner AND state = 'running'
        RETURNING 1
    )
    SELECT count(*) FROM extended
$$;

CREATE FUNCTION tool_calls_settle_abandoned(grace_seconds double precision, at_most integer)
RETURNS TABLE (id uuid, call_id text, microdao_id text, agent_id text, tool_id text, effect text, error_kind text)
LANGUAGE sql SECURITY DEFINER AS $$
    WITH abandoned AS (
        SELECT calls.id FROM tool_calls AS calls
        WHERE calls.state = 'running' AND calls.lease_until < now() - make_interval(secs => grace_seconds)
        ORDER BY calls.lease_until
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

CREATE FUNCTION tool_calls_purge(calls_older_than interval, at_most integer) RETURNS bigint
LANGUAGE sql SECURITY DEFINER AS $$
    WITH results AS (
        DELETE FROM tool_results WHERE id IN (SELECT id FROM tool_results WHERE expires_at < now() LIMIT at_most)
        RETURNING 1
    ), calls AS (
        DELETE FROM tool_calls
        WHERE id IN (
            SELECT id FROM tool_calls
            WHERE started_at < now() - calls_older_than AND state <> 'running'
            LIMIT at_most
        )
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM results) + (SELECT count(*) FROM calls)
$$;

DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION tool_calls_extend_leases(uuid, uuid[], double precision) SET search_path = %I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION tool_calls_settle_abandoned(double precision, integer) SET search_path = %I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION tool_calls_purge(interval, integer) SET search_path = %I, pg_temp', current_schema());
END
$$;

REVOKE ALL ON FUNCTION tool_calls_extend_leases(uuid, uuid[], double precision) FROM PUBLIC;
REVOKE ALL ON FUNCTION tool_calls_settle_abandoned(double precision, integer) FROM PUBLIC;
REVOKE ALL ON FUNCTION tool_calls_purge(interval, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION tool_calls_extend_leases(uuid, uuid[], double precision) TO daarion_service;
GRANT EXECUTE ON FUNCTION tool_calls_settle_abandoned(double precision, integer) TO daarion_service;
GRANT EXECUTE ON FUNCTION tool_calls_purge(interval, integer) TO daarion_service;
