-- Retention of what was kept for ever, erasure in every table, and what quotas count.
-- See docs/decisions/162-erasure-by-one-function-per-class.md.

-- Whose a request or an answer is, so that an agent or a channel can be erased; a null agent_id: an older version wrote it.
ALTER TABLE llm_batch_items ADD COLUMN agent_id text, ADD COLUMN channel_id text;
ALTER TABLE llm_idempotency ADD COLUMN agent_id text, ADD COLUMN channel_id text;

-- Purges take the oldest rows first.
CREATE INDEX channel_messages_by_time ON channel_messages (created_at);

-- The functions below run as the owner, to whom row security applies, too.
CREATE POLICY upkeep ON channel_messages TO CURRENT_USER USING (true) WITH CHECK (true);
CREATE POLICY upkeep ON projects TO CURRENT_USER USING (true) WITH CHECK (true);
CREATE POLICY upkeep ON follow_ups TO CURRENT_USER USING (true) WITH CHECK (true);
CREATE POLICY counted ON memories FOR SELECT TO CURRENT_USER USING (true);

-- Purges: as in 0011_purges.sql.

-- The ledger's purge goes from agent to agent by their indexes, (agent_id, occurred_at): the ledger is too large to index anew
-- under a lock, and its BRIN indexes stop excluding blocks once the space of purged rows is used again.
-- Limits of money read the days of a whole month of llm_spending.
CREATE FUNCTION llm_usage_purge(older_than interval, at_most integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    attempts bigint;
    calls bigint;
    days bigint;
BEGIN
    WITH RECURSIVE agents AS (
        SELECT min(agent_id) AS agent_id FROM llm_attempts
        UNION ALL
        SELECT (SELECT min(later.agent_id) FROM llm_attempts AS later WHERE later.agent_id > agents.agent_id)
        FROM agents WHERE agents.agent_id IS NOT NULL
    ), old AS MATERIALIZED (
        SELECT due.* FROM agents CROSS JOIN LATERAL (
            SELECT call_id, number FROM llm_attempts
            WHERE llm_attempts.agent_id = agents.agent_id AND occurred_at < now() - older_than
            ORDER BY occurred_at LIMIT at_most FOR UPDATE SKIP LOCKED
        ) AS due LIMIT at_most
    )
    DELETE FROM llm_attempts WHERE (call_id, number) IN (SELECT call_id, number FROM old);
    GET DIAGNOSTICS attempts = ROW_COUNT;
    WITH RECURSIVE agents AS (
        SELECT min(agent_id) AS agent_id FROM llm_usage
        UNION ALL
        SELECT (SELECT min(later.agent_id) FROM llm_usage AS later WHERE later.agent_id > agents.agent_id)
        FROM agents WHERE agents.agent_id IS NOT NULL
    ), old AS MATERIALIZED (
        SELECT due.* FROM agents CROSS JOIN LATERAL (
            SELECT id FROM llm_usage
            WHERE llm_usage.agent_id = agents.agent_id AND occurred_at < now() - older_than
            ORDER BY occurred_at LIMIT at_most FOR UPDATE SKIP LOCKED
        ) AS due LIMIT at_most
    )
    DELETE FROM llm_usage WHERE id IN (SELECT id FROM old);
    GET DIAGNOSTICS calls = ROW_COUNT;
    DELETE FROM llm_spending WHERE (kind, subject, day, recorder) IN (
        SELECT kind, subject, day, recorder FROM llm_spending
        WHERE day < (now() - greatest(older_than, interval '62 days'))::date
        LIMIT at_most FOR UPDATE SKIP LOCKED
    );
    GET DIAGNOSTICS days = ROW_COUNT;
    RETURN attempts + calls + days;
END
$$;

CREATE FUNCTION channel_messages_purge(older_than interval, at_most integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    old uuid[] := ARRAY(
        SELECT id FROM channel_messages WHERE created_at < now() - older_than
        ORDER BY created_at LIMIT at_most FOR UPDATE SKIP LOCKED
    );
BEGIN
    DELETE FROM invocation_outbox WHERE message_id = ANY (old);
    DELETE FROM channel_messages WHERE id = ANY (old);
    RETURN cardinality(old);
END
$$;

-- The current version of a tool stays, however old it is.
CREATE FUNCTION tool_versions_purge(older_than interval, at_most integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    gone bigint;
BEGIN
    DELETE FROM tool_versions WHERE (tool_id, version) IN (
        SELECT former.tool_id, former.version FROM tool_versions AS former JOIN tools USING (tool_id)
        WHERE former.created_at < now() - older_than AND former.version < tools.version
        ORDER BY former.created_at LIMIT at_most FOR UPDATE OF former SKIP LOCKED
    );
    GET DIAGNOSTICS gone = ROW_COUNT;
    RETURN gone;
END
$$;

-- Erasure: one function per class. Each removes at most `at_most` rows of a microDAO, of one agent of it, of one channel of it, or
-- of an agent in a channel, and returns their number; 0 means that nothing is left. They wait for locked rows: none is passed over.

CREATE FUNCTION erase_invocations(of_microdao text, of_agent text, of_channel text, at_most integer) RETURNS bigint
LANGUAGE sql SECURITY DEFINER AS $$
    WITH gone AS (
        DELETE FROM invocation_outbox WHERE id IN (
            SELECT id FROM invocation_outbox
            WHERE microdao_id = of_microdao
              AND (of_agent IS NULL OR agent_id = of_agent)
              AND (of_channel IS NULL OR channel_id::text = of_channel)
            LIMIT at_most
        )
        RETURNING 1
    )
    SELECT count(*) FROM gone
$$;

CREATE FUNCTION erase_runs(of_microdao text, of_agent text, of_channel text, at_most integer) RETURNS bigint
LANGUAGE sql SECURITY DEFINER AS $$
    WITH gone AS (
        DELETE FROM agent_runs WHERE (microdao_id, id) IN (
            SELECT microdao_id, id FROM agent_runs
            WHERE microdao_id = of_microdao
              AND (of_agent IS NULL OR agent_id = of_agent)
              AND (of_channel IS NULL OR channel_id = of_channel)
            LIMIT at_most
        )
        RETURNING 1
    )
    SELECT count(*) FROM gone
$$;

-- A key in work has no answer yet, and whoever works would call the model again without it.
CREATE FUNCTION erase_idempotent_answers(of_microdao text, of_agent text, of_channel text, at_most integer) RETURNS bigint
LANGUAGE sql SECURITY DEFINER AS $$
    WITH gone AS (
        DELETE FROM llm_idempotency WHERE (microdao_id, key) IN (
            SELECT microdao_id, key FROM llm_idempotency
            WHERE microdao_id = of_microdao AND (answer IS NOT NULL OR leased_until < now())
              AND (
                  agent_id IS NULL
                  OR (of_agent IS NULL OR agent_id = of_agent) AND (of_channel IS NULL OR channel_id = of_channel)
              )
            LIMIT at_most
        )
        RETURNING 1
    )
    SELECT count(*) FROM gone
$$;

-- A batch shrinks by the requests that go, and goes with the last of them.
CREATE FUNCTION erase_batch_requests(of_microdao text, of_agent text, of_channel text, at_most integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    shrunk record;
    gone bigint := 0;
BEGIN
    FOR shrunk IN
        WITH erased AS (
            DELETE FROM llm_batch_items WHERE (batch_id, position) IN (
                SELECT items.batch_id, items.position FROM llm_batches AS batches JOIN llm_batch_items AS items ON items.batch_id = batches.id
                WHERE batches.microdao_id = of_microdao
                  AND (
                      items.agent_id IS NULL
                      OR (of_agent IS NULL OR items.agent_id = of_agent) AND (of_channel IS NULL OR items.channel_id = of_channel)
                  )
                LIMIT at_most
            )
            RETURNING batch_id, state
        )
        SELECT batch_id, count(*) AS requests, count(*) FILTER (WHERE state = 'succeeded') AS succeeded,
               count(*) FILTER (WHERE state = 'failed') AS failed
        FROM erased GROUP BY batch_id ORDER BY batch_id
    LOOP
        gone := gone + shrunk.requests;
        DELETE FROM llm_batches WHERE id = shrunk.batch_id AND total = shrunk.requests;
        UPDATE llm_batches AS batches
        SET total = total - shrunk.requests,
            succeeded = batches.succeeded - shrunk.succeeded,
            failed = batches.failed - shrunk.failed,
            ended_at = CASE
                WHEN batches.succeeded - shrunk.succeeded + batches.failed - shrunk.failed = total - shrunk.requests
                THEN coalesce(ended_at, now())
            END
        WHERE id = shrunk.batch_id;
    END LOOP;
    IF gone = 0 THEN
        DELETE FROM llm_batch_turns AS turns
        WHERE turns.microdao_id = of_microdao AND NOT EXISTS (SELECT FROM llm_batches AS batches WHERE batches.microdao_id = of_microdao);
    END IF;
    RETURN gone;
END
$$;

-- Their results go with them. A call that runs keeps its record, by which its caller gets its answer.
CREATE FUNCTION erase_tool_calls(of_microdao text, of_agent text, of_channel text, at_most integer) RETURNS bigint
LANGUAGE sql SECURITY DEFINER AS $$
    WITH gone AS (
        DELETE FROM tool_calls WHERE id IN (
            SELECT id FROM tool_calls
            WHERE microdao_id = of_microdao AND (state <> 'running' OR leased_until < now())
              AND (of_agent IS NULL OR agent_id = of_agent)
              AND (of_channel IS NULL OR channel_id = of_channel)
            LIMIT at_most
        )
        RETURNING 1
    )
    SELECT count(*) FROM gone
$$;

-- An agent's events are those of its runs and invocations. Searched as text: PostgreSQL reads no member of a value with a \u0000.
-- A quote within a string is written \", so what is found is a member.
CREATE FUNCTION erase_channel_events(of_microdao text, of_agent text, of_channel text, at_most integer) RETURNS bigint
LANGUAGE sql SECURITY DEFINER AS $$
    WITH gone AS (
        DELETE FROM channel_events WHERE (channel_id, position) IN (
            SELECT events.channel_id, events.position FROM channels JOIN channel_events AS events ON events.channel_id = channels.id
            WHERE channels.microdao_id = of_microdao
              AND (of_agent IS NULL OR strpos(events.payload::text, '"agent_id":' || to_json(of_agent)) > 0)
              AND (of_channel IS NULL OR channels.id::text = of_channel)
            LIMIT at_most
        )
        RETURNING 1
    )
    SELECT count(*) FROM gone
$$;

-- An agent's messages are those that it sent.
CREATE FUNCTION erase_messages(of_microdao text, of_agent text, of_channel text, at_most integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    erased uuid[] := ARRAY(
        SELECT messages.id FROM channels JOIN channel_messages AS messages ON messages.channel_id = channels.id
        WHERE channels.microdao_id = of_microdao
          AND (of_agent IS NULL OR messages.sender_id = of_agent)
          AND (of_channel IS NULL OR channels.id::text = of_channel)
        LIMIT at_most
    );
BEGIN
    DELETE FROM invocation_outbox WHERE message_id = ANY (erased);
    DELETE FROM channel_messages WHERE id = ANY (erased);
    RETURN cardinality(erased);
END
$$;

CREATE FUNCTION erase_channel_members(of_microdao text, of_agent text, of_channel text, at_most integer) RETURNS bigint
LANGUAGE sql SECURITY DEFINER AS $$
    WITH gone AS (
        DELETE FROM channel_members WHERE (channel_id, member_id) IN (
            SELECT channel_id, member_id FROM channel_members
            WHERE microdao_id = of_microdao
              AND (of_agent IS NULL OR member_id = of_agent)
              AND (of_channel IS NULL OR channel_id::text = of_channel)
            LIMIT at_most
        )
        RETURNING 1
    )
    SELECT count(*) FROM gone
$$;

-- Whoever writes to a channel holds its row's lock: what came after the functions above is removed here, and then nothing comes.
CREATE FUNCTION erase_channels(of_microdao text, of_agent text, of_channel text, at_most integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    erased uuid[] := ARRAY(
        SELECT id FROM channels
        WHERE of_agent IS NULL AND microdao_id = of_microdao AND (of_channel IS NULL OR id::text = of_channel)
        ORDER BY id LIMIT at_most FOR UPDATE
    );
BEGIN
    DELETE FROM invocation_outbox WHERE microdao_id = of_microdao AND channel_id = ANY (erased);
    DELETE FROM channel_events WHERE channel_id = ANY (erased);
    DELETE FROM channel_messages WHERE channel_id = ANY (erased);
    DELETE FROM channel_members WHERE channel_id = ANY (erased);
    DELETE FROM channels WHERE id = ANY (erased);
    RETURN cardinality(erased);
END
$$;

-- An agent's follow-ups are those that it created. They belong to no channel.
CREATE FUNCTION erase_follow_ups(of_microdao text, of_agent text, of_channel text, at_most integer) RETURNS bigint
LANGUAGE sql SECURITY DEFINER AS $$
    WITH gone AS (
        DELETE FROM follow_ups WHERE (microdao_id, id) IN (
            SELECT microdao_id, id FROM follow_ups
            WHERE of_channel IS NULL AND microdao_id = of_microdao AND (of_agent IS NULL OR created_by = of_agent)
            LIMIT at_most
        )
        RETURNING 1
    )
    SELECT count(*) FROM gone
$$;

-- A follow-up that comes meanwhile keeps its project, until the erasure is repeated.
CREATE FUNCTION erase_projects(of_microdao text, of_agent text, of_channel text, at_most integer) RETURNS bigint
LANGUAGE sql SECURITY DEFINER AS $$
    WITH gone AS (
        DELETE FROM projects WHERE (microdao_id, id) IN (
            SELECT microdao_id, id FROM projects
            WHERE of_agent IS NULL AND of_channel IS NULL AND microdao_id = of_microdao
              AND NOT EXISTS (
                  SELECT FROM follow_ups WHERE follow_ups.microdao_id = projects.microdao_id AND follow_ups.project_id = projects.id
              )
            LIMIT at_most FOR UPDATE
        )
        RETURNING 1
    )
    SELECT count(*) FROM gone
$$;

-- What a microDAO stores, counted up to `at_most`.
CREATE FUNCTION stored_memories(of_microdao text, at_most bigint) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER AS $$
    SELECT count(*) FROM (SELECT FROM memories WHERE microdao_id = of_microdao LIMIT at_most) AS stored
$$;
CREATE FUNCTION stored_messages(of_microdao text, at_most bigint) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER AS $$
    SELECT count(*) FROM (
        SELECT FROM channels JOIN channel_messages AS messages ON messages.channel_id = channels.id
        WHERE channels.microdao_id = of_microdao LIMIT at_most
    ) AS stored
$$;

DO $$
DECLARE
    maker regprocedure;
BEGIN
    FOR maker IN
        SELECT oid::regprocedure FROM pg_proc
        WHERE pronamespace = current_schema()::regnamespace AND prosecdef AND (
            proname ~ '^(erase|stored)_' OR proname IN ('llm_usage_purge', 'channel_messages_purge', 'tool_versions_purge')
        )
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', maker, current_schema());
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', maker);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO daarion_service', maker);
    END LOOP;
END
$$;
