-- The agent runtime: one row per run. `journal` is what a run in work can be resumed from, and is emptied when it ends.

CREATE TABLE agent_runs (
    id                uuid NOT NULL,
    microdao_id       text NOT NULL CHECK (microdao_id <> ''),
    agent_id          text NOT NULL,
    channel_id        text NOT NULL,
    trigger_id        text NOT NULL,
    invocation        json NOT NULL,
    nonce             text NOT NULL,
    state             text NOT NULL CHECK (state IN ('queued', 'running', 'posting', 'done')),
    outcome           text CHECK (outcome IN ('answered', 'failed', 'ignored', 'undelivered', 'indeterminate')),
    attempt           integer NOT NULL DEFAULT 1,
    owner             uuid,
    lease_until       timestamptz NOT NULL,
    journal           text[] NOT NULL DEFAULT '{}',
    steps             text[] NOT NULL DEFAULT '{}',
    reply             text,
    error             text,
    memory_ids        text[] NOT NULL DEFAULT '{}',
    degraded          text[] NOT NULL DEFAULT '{}',
    model             text,
    prompt_tokens     bigint NOT NULL DEFAULT 0,
    completion_tokens bigint NOT NULL DEFAULT 0,
    tool_calls        integer NOT NULL DEFAULT 0,
    created_at        timestamptz NOT NULL DEFAULT now(),
    started_at        timestamptz,
    finished_at       timestamptz,
    PRIMARY KEY (microdao_id, id),
    CHECK ((state = 'done') = (outcome IS NOT NULL)),
    -- An empty channel_id stands for a run without a channel. One message of one channel is answered once by an agent.
    CONSTRAINT agent_runs_one_per_trigger UNIQUE (microdao_id, agent_id, channel_id, trigger_id)
);
CREATE INDEX agent_runs_newest ON agent_runs (microdao_id, created_at DESC, id DESC);
CREATE INDEX agent_runs_open ON agent_runs (lease_until) WHERE state <> 'done';
CREATE INDEX agent_runs_ended ON agent_runs (finished_at) WHERE state = 'done';

GRANT SELECT, INSERT, UPDATE ON agent_runs TO daarion_service;

ALTER TABLE agent_runs ENABLE ROW LEVEL SECURITY;
ALTER TABLE agent_runs FORCE ROW LEVEL SECURITY;
CREATE POLICY own_microdao ON agent_runs TO daarion_service
    USING (microdao_id = (SELECT current_setting('daarion.microdao_id', true)))
    WITH CHECK (microdao_id = (SELECT current_setting('daarion.microdao_id', true)));

-- The functions below do across microDAOs what no single one could ask for, and nothing else; they run as the owner.
CREATE POLICY upkeep ON agent_runs TO CURRENT_USER USING (true) WITH CHECK (true);

CREATE FUNCTION agent_runs_claim(of_owner uuid, seconds double precision, at_most integer) RETURNS SETOF agent_runs
LANGUAGE sql SECURITY DEFINER AS $$
    WITH open AS (
        SELECT runs.microdao_id, runs.id FROM agent_runs AS runs
        WHERE runs.state <> 'done' AND runs.lease_until < now()
        ORDER BY runs.lease_until
        LIMIT at_most
        FOR UPDATE SKIP LOCKED
    )
    UPDATE agent_runs AS runs
    SET owner = of_owner, lease_until = now() + make_interval(secs => seconds), attempt = runs.attempt + 1
    FROM open
    WHERE runs.microdao_id = open.microdao_id AND runs.id = open.id
    RETURNING runs.*
$$;

CREATE FUNCTION agent_runs_extend(of_owner uuid, runs_in_work uuid[], seconds double precision) RETURNS bigint
LANGUAGE sql SECURITY DEFINER AS $$
    WITH extended AS (
        UPDATE agent_runs SET lease_until = now() + make_interval(secs => seconds)
        WHERE id = ANY (runs_in_work) AND owner = of_owner AND state <> 'done'
        RETURNING 1
    )
    SELECT count(*) FROM extended
$$;

CREATE FUNCTION agent_runs_purge(older_than interval, at_most integer) RETURNS bigint
LANGUAGE sql SECURITY DEFINER AS $$
    WITH gone AS (
        DELETE FROM agent_runs AS runs USING (
            SELECT microdao_id, id FROM agent_runs WHERE state = 'done' AND finished_at < now() - older_than LIMIT at_most
        ) AS old
        WHERE runs.microdao_id = old.microdao_id AND runs.id = old.id
        RETURNING 1
    )
    SELECT count(*) FROM gone
$$;

DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION agent_runs_claim(uuid, double precision, integer) SET search_path = %I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION agent_runs_extend(uuid, uuid[], double precision) SET search_path = %I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION agent_runs_purge(interval, integer) SET search_path = %I, pg_temp', current_schema());
END
$$;

REVOKE ALL ON FUNCTION agent_runs_claim(uuid, double precision, integer) FROM PUBLIC;
REVOKE ALL ON FUNCTION agent_runs_extend(uuid, uuid[], double precision) FROM PUBLIC;
REVOKE ALL ON FUNCTION agent_runs_purge(interval, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION agent_runs_claim(uuid, double precision, integer) TO daarion_service;
GRANT EXECUTE ON FUNCTION agent_runs_extend(uuid, uuid[], double precision) TO daarion_service;
GRANT EXECUTE ON FUNCTION agent_runs_purge(interval, integer) TO daarion_service;
