-- Batches of the LLM proxy with their items, and the answers that are kept for idempotency keys.
-- Requests and answers are text, not jsonb, which refuses \u0000.
-- served_at: when a batch last had its turn. resume_at: until when it pauses, because a limit of its callers is exhausted.

CREATE TABLE llm_batches (
    id           uuid PRIMARY KEY,
    microdao_id  text NOT NULL CHECK (microdao_id <> ''),
    total        integer NOT NULL CHECK (total > 0),
    succeeded    integer NOT NULL DEFAULT 0,
    failed       integer NOT NULL DEFAULT 0,
    created_at   timestamptz NOT NULL DEFAULT now(),
    cancelled_at timestamptz,
    ended_at     timestamptz,
    served_at    timestamptz NOT NULL DEFAULT '-infinity',
    resume_at    timestamptz NOT NULL DEFAULT '-infinity',
    CHECK (succeeded + failed <= total)
);
CREATE INDEX llm_batches_newest ON llm_batches (microdao_id, created_at DESC, id DESC);
CREATE INDEX llm_batches_open ON llm_batches (microdao_id, served_at) WHERE ended_at IS NULL AND cancelled_at IS NULL;
CREATE INDEX llm_batches_age ON llm_batches (created_at);

-- When a microDAO last had its turn: many batches give nobody more turns than one. Every microDAO with an open batch has a row.
CREATE TABLE llm_batch_turns (
    microdao_id text PRIMARY KEY CHECK (microdao_id <> ''),
    served_at   timestamptz NOT NULL DEFAULT '-infinity'
);
CREATE INDEX llm_batch_turns_next ON llm_batch_turns (served_at);

-- due_at: when a pending item may begin, when a running one's lease is over. token: the attempt that holds the lease.
-- stalled_since: since when its model was left alone whenever it was tried.
-- What is pending in a cancelled batch is cancelled: no row is touched for that.
CREATE TABLE llm_batch_items (
    batch_id    uuid NOT NULL REFERENCES llm_batches (id) ON DELETE CASCADE,
    position    integer NOT NULL CHECK (position >= 0),
    microdao_id text NOT NULL,
    custom_id   text NOT NULL,
    request     text NOT NULL,
    state       text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'running', 'succeeded', 'failed')),
    failures    integer NOT NULL DEFAULT 0,
    token       uuid,
    due_at      timestamptz NOT NULL DEFAULT '-infinity',
    stalled_since timestamptz,
    result      text,
    ended_at    timestamptz,
    PRIMARY KEY (batch_id, position),
    CONSTRAINT llm_batch_items_custom_id UNIQUE (batch_id, custom_id)
);
CREATE INDEX llm_batch_items_due ON llm_batch_items (batch_id, due_at, position) WHERE state IN ('pending', 'running');
CREATE INDEX llm_batch_items_held ON llm_batch_items (token) WHERE state = 'running';

-- key: a digest of the agent and what it gave. token: the attempt in work. answer: null until the key is settled.
CREATE TABLE llm_idempotency (
    microdao_id text NOT NULL CHECK (microdao_id <> ''),
    key         bytea NOT NULL,
    fingerprint bytea NOT NULL,
    token       uuid NOT NULL,
    lease_until timestamptz NOT NULL,
    answer      text,
    expires_at  timestamptz NOT NULL,
    PRIMARY KEY (microdao_id, key)
);
CREATE INDEX llm_idempotency_expiry ON llm_idempotency (expires_at);

GRANT SELECT, INSERT, UPDATE ON llm_batches, llm_batch_turns, llm_batch_items TO daarion_service;
GRANT SELECT, INSERT, UPDATE, DELETE ON llm_idempotency TO daarion_service;

ALTER TABLE llm_batches ENABLE ROW LEVEL SECURITY;
ALTER TABLE llm_batches FORCE ROW LEVEL SECURITY;
ALTER TABLE llm_batch_turns ENABLE ROW LEVEL SECURITY;
ALTER TABLE llm_batch_turns FORCE ROW LEVEL SECURITY;
ALTER TABLE llm_batch_items ENABLE ROW LEVEL SECURITY;
ALTER TABLE llm_batch_items FORCE ROW LEVEL SECURITY;
ALTER TABLE llm_idempotency ENABLE ROW LEVEL SECURITY;
ALTER TABLE llm_idempotency FORCE ROW LEVEL SECURITY;

CREATE POLICY own_microdao ON llm_batches TO daarion_service
    USING (microdao_id = (SELECT current_setting('daarion.microdao_id', true)))
    WITH CHECK (microdao_id = (SELECT current_setting('daarion.microdao_id', true)));
CREATE POLICY own_microdao ON llm_batch_turns TO daarion_service
    USING (microdao_id = (SELECT current_setting('daarion.microdao_id', true)))
    WITH CHECK (microdao_id = (SELECT current_setting('daarion.microdao_id', true)));
CREATE POLICY own_microdao ON llm_batch_items TO daarion_service
    USING (microdao_id = (SELECT current_setting('daarion.microdao_id', true)))
    WITH CHECK (microdao_id = (SELECT current_setting('daarion.microdao_id', true)));
CREATE POLICY own_microdao ON llm_idempotency TO daarion_service
    USING (microdao_id = (SELECT current_setting('daarion.microdao_id', true)))
    WITH CHECK (microdao_id = (SELECT current_setting('daarion.microdao_id', true)));

-- The functions below do across microDAOs what no single one could ask for, and nothing else; they run as the owner.
CREATE POLICY upkeep ON llm_batches TO CURRENT_USER USING (true) WITH CHECK (true);
CREATE POLICY upkeep ON llm_batch_turns TO CURRENT_USER USING (true) WITH CHECK (true);
CREATE POLICY upkeep ON llm_batch_items TO CURRENT_USER USING (true) WITH CHECK (true);
CREATE POLICY upkeep ON llm_idempotency TO CURRENT_USER USING (true) WITH CHECK (true);

-- One due item of the microDAO that was served longest ago, of its batch that was served longest ago. An item whose lease is
-- over counts a failure. At most one row of llm_batches and then one of llm_batch_turns is locked, and always after the item's:
-- no two of these statements can wait for each other.
CREATE FUNCTION llm_batch_claim(lease_seconds double precision)
RETURNS TABLE (
    batch_id uuid, item integer, microdao_id text, request text, token uuid, failures integer, stalled_seconds double precision
)
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    tenant text;
    candidate uuid;
BEGIN
    FOR tenant IN
        SELECT turns.microdao_id FROM llm_batch_turns AS turns
        WHERE EXISTS (
            SELECT FROM llm_batches AS batches
            WHERE batches.microdao_id = turns.microdao_id
              AND batches.ended_at IS NULL AND batches.cancelled_at IS NULL AND batches.resume_at <= now()
              AND EXISTS (
                  SELECT FROM llm_batch_items AS items
                  WHERE items.batch_id = batches.id AND items.state IN ('pending', 'running') AND items.due_at <= now()
              )
        )
        ORDER BY turns.served_at
        LIMIT 8
    LOOP
        FOR candidate IN
            SELECT batches.id FROM llm_batches AS batches
            WHERE batches.microdao_id = tenant
              AND batches.ended_at IS NULL AND batches.cancelled_at IS NULL AND batches.resume_at <= now()
              AND EXISTS (
                  SELECT FROM llm_batch_items AS items
                  WHERE items.batch_id = batches.id AND items.state IN ('pending', 'running') AND items.due_at <= now()
              )
            ORDER BY batches.served_at
            LIMIT 8
        LOOP
            RETURN QUERY
                WITH due AS MATERIALIZED (
                    SELECT items.position FROM llm_batch_items AS items
                    WHERE items.batch_id = candidate AND items.state IN ('pending', 'running') AND items.due_at <= now()
                    ORDER BY items.due_at, items.position
                    LIMIT 1
                    FOR UPDATE SKIP LOCKED
                )
                UPDATE llm_batch_items AS items
                SET failures = items.failures + CASE WHEN items.state = 'running' THEN 1 ELSE 0 END,
                    state = 'running',
                    token = gen_random_uuid(),
                    due_at = now() + make_interval(secs => lease_seconds)
                FROM due
                WHERE items.batch_id = candidate AND items.position = due.position
                RETURNING items.batch_id, items.position, items.microdao_id, items.request, items.token, items.failures,
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

-- Prolongs the leases of the attempts that are held and returns those that go on; those of a cancelled batch do not. Whoever
-- runs them names them: an attempt whose claim or end was lost on the way is named by nobody, and its lease ends.
CREATE FUNCTION llm_batch_extend_leases(held uuid[], lease_seconds double precision) RETURNS TABLE (token uuid)
LANGUAGE sql SECURITY DEFINER AS $$
    UPDATE llm_batch_items AS items
    SET due_at = now() + make_interval(secs => lease_seconds)
    FROM llm_batches AS batches
    WHERE items.token = ANY (held) AND items.state = 'running' AND batches.id = items.batch_id AND batches.cancelled_at IS NULL
    RETURNING items.token
$$;

-- Deletes old batches, and the turns of microDAOs without an open batch. A turn is locked before it is looked whether one is
-- open: a submission updates it first, so that neither misses the other.
CREATE FUNCTION llm_batch_purge(older_than_seconds double precision, at_most integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    idle text[];
    gone bigint;
BEGIN
    SELECT array_agg(locked.microdao_id) INTO idle FROM (
        SELECT turns.microdao_id FROM llm_batch_turns AS turns
        WHERE NOT EXISTS (
            SELECT FROM llm_batches AS batches
            WHERE batches.microdao_id = turns.microdao_id AND batches.ended_at IS NULL AND batches.cancelled_at IS NULL
        )
        LIMIT 1000
        FOR UPDATE SKIP LOCKED
    ) AS locked;
    DELETE FROM llm_batch_turns AS turns
    WHERE turns.microdao_id = ANY (idle)
      AND NOT EXISTS (
          SELECT FROM llm_batches AS batches
          WHERE batches.microdao_id = turns.microdao_id AND batches.ended_at IS NULL AND batches.cancelled_at IS NULL
      );
    WITH deleted AS (
        DELETE FROM llm_batches
        WHERE id IN (
            SELECT id FROM llm_batches
            WHERE created_at < now() - make_interval(secs => older_than_seconds)
            ORDER BY created_at LIMIT at_most
            FOR UPDATE SKIP LOCKED
        )
        RETURNING 1
    )
    SELECT count(*) INTO gone FROM deleted;
    RETURN gone;
END
$$;

CREATE FUNCTION llm_idempotency_purge(at_most integer) RETURNS bigint
LANGUAGE sql SECURITY DEFINER AS $$
    WITH gone AS (
        DELETE FROM llm_idempotency
        WHERE (microdao_id, key) IN (SELECT microdao_id, key FROM llm_idempotency WHERE expires_at < now() LIMIT at_most FOR UPDATE SKIP LOCKED)
        RETURNING 1
    )
    SELECT count(*) FROM gone
$$;

DO $$
DECLARE
    signature text;
BEGIN
    FOREACH signature IN ARRAY ARRAY[
        'llm_batch_claim(double precision)',
        'llm_batch_extend_leases(uuid[], double precision)',
        'llm_batch_purge(double precision, integer)',
        'llm_idempotency_purge(integer)'
    ]
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', signature, current_schema());
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', signature);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO daarion_service', signature);
    END LOOP;
END
$$;
