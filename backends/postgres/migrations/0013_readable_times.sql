-- Moments outside the years 1 to 9999 in UTC could be stored and cannot be read: they broke each listing of their tenant.
-- Their rows get the nearest moment that can be. Row security is lifted from the owner for as long as this takes.

DO $$
DECLARE
    dated text;
BEGIN
    FOREACH dated IN ARRAY ARRAY['memories', 'memory_events', 'agent_memories'] LOOP
        EXECUTE format('ALTER TABLE %I NO FORCE ROW LEVEL SECURITY', dated);
        EXECUTE format(
            'UPDATE %I SET created_at = least(greatest(created_at, %L::timestamptz), %L::timestamptz)
             WHERE created_at < %2$L::timestamptz OR created_at > %3$L::timestamptz',
            dated, '0001-01-01 00:00:00+00', '9999-12-31 23:59:59.999999+00'
        );
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', dated);
    END LOOP;
END
$$;
