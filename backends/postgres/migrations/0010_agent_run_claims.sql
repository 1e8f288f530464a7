-- Runs: since when a reply is being posted, and claims that know which agents there are and count only work that began.

ALTER TABLE agent_runs ADD COLUMN posting_since timestamptz;

DROP FUNCTION agent_runs_claim(uuid, double precision, integer);

-- A run of an agent that nobody knows is taken by whoever comes once it has lain for `strangers_after` seconds: somebody is waiting.
CREATE FUNCTION agent_runs_claim(
    of_owner uuid, seconds double precision, at_most integer, agents text[], strangers_after double precision
) RETURNS SETOF agent_runs
LANGUAGE sql SECURITY DEFINER AS $$
    WITH open AS (
        SELECT runs.microdao_id, runs.id FROM agent_runs AS runs
        WHERE runs.state <> 'done' AND runs.lease_until < now()
            AND (runs.agent_id = ANY (agents) OR runs.lease_until < now() - make_interval(secs => strangers_after))
        ORDER BY runs.lease_until
        LIMIT at_most
        FOR UPDATE SKIP LOCKED
    )
    UPDATE agent_runs AS runs
    SET owner = of_owner, lease_until = now() + make_interval(secs => seconds),
        attempt = runs.attempt + (runs.started_at IS NOT NULL)::integer
    FROM open
    WHERE runs.microdao_id = open.microdao_id AND runs.id = open.id
    RETURNING runs.*
$$;

DO $$
BEGIN
    EXECUTE format(
        'ALTER FUNCTION agent_runs_claim(uuid, double precision, integer, text[], double precision) SET search_path = %I, pg_temp',
        current_schema()
    );
END
$$;

REVOKE ALL ON FUNCTION agent_runs_claim(uuid, double precision, integer, text[], double precision) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION agent_runs_claim(uuid, double precision, integer, text[], double precision) TO daarion_service;
