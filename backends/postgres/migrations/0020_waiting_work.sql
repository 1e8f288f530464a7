-- What waits, by queue: for metrics. Ages are seconds of the oldest piece, 0 where nothing waits.
ALTER TABLE memory_queue ADD COLUMN queued_at timestamptz NOT NULL DEFAULT now();

CREATE POLICY counted ON memory_queue FOR SELECT TO CURRENT_USER USING (true);

-- Counts across microDAOs, and nothing else.
CREATE FUNCTION waiting_work() RETURNS TABLE (queue text, waiting bigint, age_s double precision)
LANGUAGE sql STABLE SECURITY DEFINER AS $$
    SELECT counted.queue, counted.waiting, coalesce(greatest(extract(epoch FROM now() - counted.oldest), 0), 0)
    FROM (
        SELECT 'agent_runs_queued' AS queue, count(*) AS waiting, min(created_at) AS oldest
        FROM agent_runs WHERE state <> 'done' AND state = 'queued'
        UNION ALL
        SELECT 'agent_runs_running', count(*), min(coalesce(started_at, created_at))
        FROM agent_runs WHERE state <> 'done' AND state <> 'queued'
        UNION ALL
        SELECT 'batch_requests', count(item.batch_id), min(batch.created_at)
        FROM llm_batches AS batch JOIN llm_batch_items AS item ON item.batch_id = batch.id
        WHERE batch.ended_at IS NULL AND batch.cancelled_at IS NULL AND item.state IN ('pending', 'running')
        UNION ALL
        SELECT 'embeddings', count(*), min(queued_at) FROM memory_queue
        UNION ALL
        SELECT 'invocations', count(*), min(created_at) FROM invocation_outbox WHERE state = 'pending'
        UNION ALL
        SELECT 'usage_announcements', count(*), min(added_at) FROM llm_usage_outbox
    ) AS counted
$$;

DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION waiting_work() SET search_path = %I, pg_temp', current_schema());
    REVOKE ALL ON FUNCTION waiting_work() FROM PUBLIC;
    GRANT EXECUTE ON FUNCTION waiting_work() TO daarion_service;
END
$$;
