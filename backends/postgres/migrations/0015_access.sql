-- Principals and their keys: a key is stored as its SHA-256. Replicas poll `access_state.revision` and then read everything.
-- `signing_key` signs the short-lived delegations between our own applications. See docs/decisions/160-keys-and-principals.md.

CREATE TABLE access_state (
    id          boolean PRIMARY KEY DEFAULT true CHECK (id),
    revision    bigint NOT NULL DEFAULT 1,
    signing_key bytea NOT NULL,
    settings    jsonb NOT NULL DEFAULT '{}'
);
-- 244 random bits: every UUID holds 122.
INSERT INTO access_state (signing_key)
VALUES (decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex'));

CREATE TABLE access_principals (
    name       text PRIMARY KEY,
    origin     text NOT NULL CHECK (origin IN ('file', 'api')),
    grants     jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE access_keys (
    id           uuid PRIMARY KEY,
    principal    text NOT NULL REFERENCES access_principals (name) ON DELETE CASCADE,
    key_hash     bytea NOT NULL UNIQUE,
    hint         text NOT NULL,
    label        text NOT NULL,
    origin       text NOT NULL CHECK (origin IN ('file', 'api')),
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz,
    last_used_at timestamptz,
    revoked_at   timestamptz
);
CREATE INDEX access_keys_of_principal ON access_keys (principal);

GRANT SELECT, UPDATE (revision, settings) ON access_state TO daarion_service;
GRANT SELECT, INSERT, UPDATE, DELETE ON access_principals, access_keys TO daarion_service;

-- Who let a run or an invocation begin; null: the graph itself, or a version without principals.
ALTER TABLE agent_runs ADD COLUMN caller jsonb;
ALTER TABLE invocation_outbox ADD COLUMN caller jsonb;
-- The credential that a batch was submitted with: who may not act as every agent sees its own batches only.
ALTER TABLE llm_batches ADD COLUMN submitter text;

DROP FUNCTION invocation_outbox_lease(uuid, double precision, integer);
CREATE FUNCTION invocation_outbox_lease(holder uuid, seconds double precision, at_most integer)
RETURNS TABLE (
    id uuid, microdao_id text, channel_id uuid, message_id uuid, agent_id text, attempts integer, age_s double precision, caller jsonb
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
        extract(epoch FROM now() - leased.created_at)::double precision, leased.caller
$$;

DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION invocation_outbox_lease(uuid, double precision, integer) SET search_path = %I, pg_temp', current_schema());
    REVOKE ALL ON FUNCTION invocation_outbox_lease(uuid, double precision, integer) FROM PUBLIC;
    GRANT EXECUTE ON FUNCTION invocation_outbox_lease(uuid, double precision, integer) TO daarion_service;
END
$$;
